"""Progress on a terminal (a bar) or in a batch log (plain lines)."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from tqdm import tqdm

SECONDS_BETWEEN_LINES = 20.0
# The first of these that a learner reports is shown unless another metric is asked for.
SHOWN = ("query_loss", "objective")


def highlights(
    means: dict[str, Any], best: dict[str, Any], metric: str | None = None
) -> dict[str, float]:
    """What to show of a call's mean metrics and of the best validation metrics.

    Args:
      means: by name, `train/...`.
      best: by name.
      metric: of the first, without `train/`; the last entry where it has several.
    """
    names = [metric] if metric else SHOWN
    there = [name for name in names if np.size(means.get(f"train/{name}", ()))]
    shown = {
        name.replace("_", " "): float(np.ravel(means[f"train/{name}"])[-1]) for name in there[:1]
    }
    return shown | {f"best {name}": x for name, x in best.items() if isinstance(x, float)}


class Progress:
    """Shows the step, the rate in tasks per second, the time left and a few metrics."""

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
