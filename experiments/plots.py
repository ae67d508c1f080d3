"""The figures that the launchers draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator


def adaptation_curves(
    path: Path,
    rows: Mapping[str, Any],
    *,
    ylabel: str,
    title: str,
    xlabel: str = "adaptation steps",
) -> None:
    """Draws mean and 95% interval against the number of adaptation steps, or a row's `steps`.

    A line joins consecutive steps only: of those between nothing is known.
    """
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, row in rows.items():
        mean, ci95 = np.asarray(row["mean"]), np.asarray(row["ci95"])
        steps = np.asarray(row.get("steps", np.arange(len(mean))))
        if np.any(np.diff(steps) > 1):
            axes.errorbar(
                steps, mean, ci95, fmt="s", markersize=4, capsize=3, label=name.replace("_", "-")
            )
            continue
        (line,) = axes.plot(steps, mean, marker="o", markersize=3, label=name.replace("_", "-"))
        axes.fill_between(steps, mean - ci95, mean + ci95, color=line.get_color(), alpha=0.2)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def training_curve(
    path: Path, metrics: Sequence[Mapping[str, Any]], names: Mapping[str, str], *, ylabel: str
) -> None:
    """Draws entries of `metrics.jsonl` (`names`: entry to label) against the meta-step.

    The vertical axis shows at most twice the range of the first entry, so a diverging entry leaves
    the picture.
    """
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, label in names.items():
        points = [(line["step"], line[name]) for line in metrics if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, linewidth=1)
        if name == next(iter(names)):
            bottom, top = axes.get_ylim()
    axes.set_ylim(min(bottom, 0.0), min(2 * top - bottom, axes.get_ylim()[1]))
    axes.set(xlabel="meta-steps", ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def lines(
    path: Path,
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    *,
    xlabel: str | None,
    ylabel: str,
    title: str,
) -> None:
    """Draws named lines of `(x, y)` points, in panels side by side.

    Without an `xlabel` each panel is labelled by its name.
    """
    figure, grid = plt.subplots(
        1,
        len(panels),
        figsize=(6 * len(panels), 4.5),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for axes, (name, rows) in zip(grid[0], panels.items(), strict=True):
        for label, points in rows.items():
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
        axes.set_xlabel(xlabel or name)
        axes.grid(alpha=0.3)
    grid[0][0].set_ylabel(ylabel)
    grid[0][-1].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
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


def paths(path: Path, goals: np.ndarray, positions: np.ndarray) -> None:
    """Draws where a point went before and after each adaptation step, one column per task.

    Args:
      path: the PNG to write.
      goals: `[tasks, 2]`.
      positions: `[tasks, adaptation steps + 1, time, 2]`, NaN after the end.
    """
    num_tasks, num_steps = positions.shape[:2]
    figure, row = plt.subplots(
        1, num_tasks, figsize=(3.2 * num_tasks, 3.4), squeeze=False, layout="constrained"
    )
    shades = plt.get_cmap("viridis")(np.linspace(0.9, 0.1, num_steps))
    for axes, goal, paths in zip(row[0], goals, positions, strict=True):
        for step, (places, shade) in enumerate(zip(paths, shades, strict=True)):
            label = "before" if not step else f"{step} step{'s' if step != 1 else ''}"
            axes.plot(*places.T, color=shade, linewidth=1, marker=".", markersize=3, label=label)
        axes.plot(*goal, marker="*", color="crimson", markersize=12, linestyle="", label="goal")
        axes.set_aspect("equal", adjustable="datalim")
        axes.grid(alpha=0.3)
    row[0][-1].legend(fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def contact_sheet(
    path: Path, tasks: Sequence[tuple[np.ndarray, np.ndarray]], *, title: str, num_shown: int
) -> None:
    """Draws the images of tasks, one row per class: support on the left, query on the right.

    Args:
      path: the PNG to write.
      tasks: support and query of each, `[ways, images, height, width, channels]` in [0, 1].
      title: the title of the sheet.
      num_shown: the maximal number of images per class, for support and query each.
    """
    height, width = tasks[0][0].shape[2:4]
    line = max(1, height // 28)  # the gap between images; between support and query it is wider
    sheets, shown = [], []
    for task in tasks:
        halves = [_tiles(images[:, :num_shown], line) for images in task if images.shape[1]]
        gap = np.ones((halves[0].shape[0], 6 * line, 3))
        sheets.append(np.concatenate([halves[0], *(x for h in halves[1:] for x in (gap, h))], 1))
        shown = [half.shape[1] for half in halves]
    centres = np.cumsum([0, *(w + 6 * line for w in shown)])[:-1] + np.array(shown) / 2
    labels = [
        name if images.shape[1] <= num_shown else f"{name}, {num_shown} of {images.shape[1]}"
        for name, images in zip(("support", "query"), tasks[0], strict=True)
    ]
    columns = min(len(tasks), 1 if sheets[0].shape[1] > 2.5 * sheets[0].shape[0] else 2)
    rows = -(-len(tasks) // columns)
    inches = min(6.0, 0.5 * sheets[0].shape[1] / (width + line))  # half an inch per image
    shape = sheets[0].shape[0] / sheets[0].shape[1]
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(columns * (inches + 0.5), rows * (inches * shape + 0.5) + 0.3),
        squeeze=False,
        layout="constrained",
    )
    for axes in grid.flat:
        axes.set_axis_off()
    for i, (axes, sheet) in enumerate(zip(grid.flat, sheets, strict=False)):
        axes.set_axis_on()
        axes.imshow(sheet, interpolation="nearest")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelsize=8)
        ways = tasks[i][0].shape[0]
        axes.set_yticks([(row + 0.5) * (height + line) for row in range(ways)], range(ways))
        axes.set_xticks(centres, labels[: len(centres)])
        axes.set_title(f"task {i}", fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=200)
    plt.close(figure)


def _tiles(images: np.ndarray, line: int) -> np.ndarray:
    """Arranges images `[rows, columns, height, width, channels]` on blue."""
    rows, columns, height, width, _ = images.shape
    tiles = np.empty((rows, height + line, columns, width + line, 3))
    tiles[:] = (0.6, 0.7, 0.9)
    tiles[:, :height, :, :width] = images.transpose(0, 2, 1, 3, 4)  # grey thrice
    return tiles.reshape(rows * (height + line), columns * (width + line), 3)
