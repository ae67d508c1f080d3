"""Progress on a terminal (a bar) or in a batch log (plain lines)."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from tqdm import tqdm

from metajax.train.workdir import provenance

SECONDS_BETWEEN_LINES = 20.0
# Shown by default: the first of these metrics that the learner reports.
SHOWN = ("query_loss", "objective")


def highlights(
    means: dict[str, Any], best: dict[str, Any], metric: str | None = None
) -> dict[str, float]:
    """The metrics of the progress line.

    Args:
      means: the mean training metrics, by names that begin with `train/`.
      best: the best validation metrics, by name.
      metric: the training metric to show, without `train/`; of an array, the last entry.
    """
    names = [metric] if metric else SHOWN
    present = [name for name in names if np.size(means.get(f"train/{name}", ()))]
    shown = {
        name.replace("_", " "): float(np.ravel(means[f"train/{name}"])[-1]) for name in present[:1]
    }
    return shown | {f"best {name}": x for name, x in best.items() if isinstance(x, float)}


class Clock:
    """Adds the seconds since now to those in the record of a run, by the kind of device."""

    def __init__(self, record: dict[str, Any]):
        self._start, self._seconds = time.monotonic(), record["seconds"]
        self._seconds_on = dict(record.get("seconds_on", {}))  # older checkpoints have none
        self._kind = provenance()["device"]["kind"]

    def stamp(self, record: dict[str, Any]) -> dict[str, Any]:
        """The record with the seconds until now."""
        spent = time.monotonic() - self._start
        here = self._seconds_on.get(self._kind, 0.0) + spent
        seconds_on = {**self._seconds_on, self._kind: here}
        return {**record, "seconds": self._seconds + spent, "seconds_on": seconds_on}


class Progress:
    """Shows the step, the tasks per second, the time left and a few metrics."""

    def __init__(self, total: int, first: int, meta_batch_size: int, *, show: bool = True):
        self._total, self._first, self._meta_batch_size = total, first, meta_batch_size
        self._start = self._shown = time.monotonic()
        self._lines = show and not sys.stderr.isatty()
        self._bar = tqdm(
            total=total, initial=first, unit="step", disable=not show or self._lines, leave=True
        )

    def update(self, step: int, metrics: dict[str, Any]) -> None:
        now = time.monotonic()
        rate = (step - self._first) * self._meta_batch_size / max(now - self._start, 1e-9)
        text = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self._bar.set_postfix_str(f"{rate:.0f} tasks/s  {text}", refresh=False)
        self._bar.update(step - self._bar.n)
        due = now - self._shown >= SECONDS_BETWEEN_LINES or step == self._total
        if self._lines and due:
            self._shown = now
            left = (self._total - step) * self._meta_batch_size / max(rate, 1e-9)
            print(
                f"step {step}/{self._total}  {rate:.0f} tasks/s  {left:.0f} s left  {text}",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        self._bar.close()
