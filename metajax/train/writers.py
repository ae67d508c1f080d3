"""Metrics on disk: one JSON object per line, and TensorBoard event files."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tensorboardX import SummaryWriter

from metajax.base import PyTree

# Metrics that are not finite are written without a warning for each.
logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)


def leaf_name(path: tuple[Any, ...]) -> str:
    """The name of a leaf on disk, such as `"query/accuracy"`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree, by name."""
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def flatten(metrics: Mapping[str, Any]) -> dict[str, float | list]:
    """Flattens nested metrics into `{"query/accuracy": 0.9, "support_loss": [1.2, 0.8]}`."""
    return {name: np.asarray(leaf, np.float64).tolist() for name, leaf in named(metrics).items()}


def means(metrics: Mapping[str, Any]) -> dict[str, float | list]:
    """Averages metrics `[meta-steps, ...]` over the meta-steps, and flattens them."""
    return flatten(jax.tree.map(_mean, metrics))


def _mean(x: np.ndarray) -> np.ndarray:
    # NumPy would add up bfloat16 in bfloat16.
    narrow = jnp.issubdtype(x.dtype, jnp.floating) and not np.issubdtype(x.dtype, np.floating)
    return np.mean(x.astype(np.float32) if narrow else x, axis=0)


class MetricWriter:
    """Writes `metrics.jsonl` and event files below a working directory.

    A resumed run continues both from its checkpoint: later entries of the interrupted run are
    dropped.
    """

    def __init__(self, workdir: Path, resumed_step: int):
        self._path = workdir / "metrics.jsonl"
        self._keep_until(resumed_step)
        self._file = self._path.open("a")
        self._events = SummaryWriter(
            str(workdir / "events"), purge_step=resumed_step + 1 if resumed_step else None
        )

    def _keep_until(self, step: int) -> None:
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (json.JSONDecodeError, KeyError):
                continue  # the half-written last line of a killed run
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        os.replace(temporary, self._path)

    def write(self, step: int, metrics: Mapping[str, float | list]) -> None:
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            entries = np.atleast_1d(value).reshape(-1)
            for i, entry in enumerate(entries):
                tag = f"{name}/{i}" if np.ndim(value) else name
                self._events.add_scalar(tag, entry, step)

    def close(self) -> None:
        self._file.close()
        self._events.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, in order."""
    path = Path(workdir) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]
