"""The figures that the launchers draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np


def adaptation_curves(path: Path, rows: Mapping[str, Any], *, ylabel: str, title: str) -> None:
    """Draws mean and 95% interval against the number of adaptation steps."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, row in rows.items():
        mean, ci95 = np.asarray(row["mean"]), np.asarray(row["ci95"])
        (line,) = axes.plot(np.arange(len(mean)), mean, marker="o", markersize=3, label=name)
        axes.fill_between(
            np.arange(len(mean)), mean - ci95, mean + ci95, color=line.get_color(), alpha=0.2
        )
    axes.set(xlabel="adaptation steps", ylabel=ylabel, title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def training_curve(
    path: Path, metrics: Sequence[Mapping[str, Any]], names: Mapping[str, str], *, ylabel: str
) -> None:
    """Draws entries of `metrics.jsonl` (`names`: entry to label) against the meta-step.

    The first entry sets the range: where another one diverges it leaves the picture.
    """
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, label in names.items():
        points = [(line["step"], line[name]) for line in metrics if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, linewidth=1)
        if name == next(iter(names)):
            bottom, top = axes.get_ylim()
    axes.set_ylim(min(bottom, 0.0), top)
    axes.set(xlabel="meta-steps", ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def regression_tasks(
    path: Path,
    x: np.ndarray,
    truth: np.ndarray,
    support: tuple[np.ndarray, np.ndarray],
    predictions: Mapping[str, Mapping[int, np.ndarray]],
) -> None:
    """Draws fits to sampled tasks: one column per task, one row per model.

    Args:
      path: the PNG to write.
      x: grid `[points]`.
      truth: `[tasks, points]`.
      support: inputs and targets, `[tasks, shots]`.
      predictions: model, then adaptation steps, then `[tasks, points]`.
    """
    num_tasks = len(truth)
    figure, grid = plt.subplots(
        len(predictions),
        num_tasks,
        figsize=(4 * num_tasks, 3 * len(predictions)),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for row, (model, by_step) in zip(grid, predictions.items(), strict=True):
        for task, axes in enumerate(row):
            axes.plot(x, truth[task], color="crimson", label="task")
            shades = np.linspace(0.35, 1.0, len(by_step))
            for shade, (step, values) in zip(shades, by_step.items(), strict=True):
                label = f"{step} step{'s' if step != 1 else ''}"
                axes.plot(x, values[task], color="green", alpha=shade, linestyle="--", label=label)
            axes.scatter(
                support[0][task], support[1][task], marker="^", color="purple", label="support"
            )
            axes.set_title(model, fontsize=10)
            axes.grid(alpha=0.3)
    grid[0][-1].legend(fontsize=7)
    figure.savefig(path, dpi=150)
    plt.close(figure)
