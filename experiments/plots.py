"""The figures that the launchers draw: one style, as PNG and, for a paper, as PDF."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# The colours of Okabe and Ito, which the colour-blind tell apart, without the yellow.
BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER, BLACK = COLORS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#000000",
)
# Sizes in inches and points: read at the width of a column, 3.3 inches, text has 6 points or more.
SIZE = (5.0, 3.4)
STYLE: dict[Any, Any] = {
    "axes.prop_cycle": cycler(linestyle=["-", "--", ":"]) * cycler(color=COLORS),
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "figure.titlesize": 10,
    "font.size": 10,
    "grid.alpha": 0.3,
    "legend.fontsize": 9,
    "legend.framealpha": 0.7,
    "lines.linewidth": 1.5,
    "pdf.fonttype": 42,  # text stays text
    "savefig.dpi": 200,
}
plt.rcParams.update(STYLE)


def save(figure: Figure, path: Path) -> None:
    """Writes a figure to `path`, and as a PDF beside it; closes it."""
    for each in (path, path.with_suffix(".pdf")):
        content, kind = io.BytesIO(), each.suffix.removeprefix(".")
        # Without a date, the same figure is the same file.
        metadata = {"CreationDate": None} if kind == "pdf" else None
        figure.savefig(content, format=kind, metadata=metadata)
        # Matplotlib itself would lose the error of a full disk to one of its own.
        each.write_bytes(content.getvalue())
    plt.close(figure)


def adaptation_curves(
    path: Path,
    rows: Mapping[str, Any],
    *,
    ylabel: str,
    title: str,
    xlabel: str = "adaptation steps",
    scale: float = 1.0,
) -> None:
    """Draws mean and 95% interval against the number of adaptation steps, or a row's `steps`.

    A line joins consecutive steps only: of those between nothing is known.
    """
    figure, axes = plt.subplots(figsize=SIZE)
    _by_step(axes, rows, scale)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.legend()
    save(figure, path)


def _by_step(axes: Axes, rows: Mapping[str, Any], scale: float = 1.0) -> None:
    unadapted = itertools.cycle((":", "-.", "--"))
    for name, row in rows.items():
        mean, ci95 = (scale * np.asarray(row[each]) for each in ("mean", "ci95"))
        steps = np.asarray(row.get("steps", np.arange(len(mean))))
        if len(steps) == 1:  # it does not adapt
            label = name.replace("_", "-")
            axes.axhline(mean[0], linestyle=next(unadapted), color=BLACK, label=label)
            continue
        if np.any(np.diff(steps) > 1):
            axes.errorbar(
                steps, mean, ci95, fmt="s", markersize=4, capsize=3, label=name.replace("_", "-")
            )
            continue
        (line,) = axes.plot(steps, mean, marker="o", markersize=3, label=name.replace("_", "-"))
        axes.fill_between(steps, mean - ci95, mean + ci95, color=line.get_color(), alpha=0.2)
    axes.set_xlabel("adaptation steps")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def comparison(
    path: Path,
    panels: Mapping[str, Mapping[str, Any]],
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    ylabel: str,
) -> None:
    """Draws several runs: a panel for each evaluation, and one of the meta-validation.

    Args:
      path: the PNG to write, with a PDF beside it.
      panels: for each evaluation the rows of the runs, as in `adaptation_curves`.
      curves: for each run the points of its meta-validation by meta-step; all may be empty.
      ylabel: what the meta-validation measures.
    """
    num_panels = len(panels) + any(curves.values())
    columns = min(num_panels, 2)
    rows = -(-num_panels // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(0.8 * SIZE[0] * columns, 0.8 * SIZE[1] * rows + 0.5), squeeze=False
    )
    for axes in grid.flat[num_panels:]:
        axes.remove()
    for axes, (name, of_runs) in zip(grid.flat, panels.items(), strict=False):
        _by_step(axes, of_runs)
        metric, _, rest = name.replace("_", "-").partition(" ")
        axes.set(ylabel=metric, title=rest)
    if any(curves.values()):
        axes = grid.flat[num_panels - 1]
        for name, points in curves.items():
            axes.plot(*np.reshape(points, (-1, 2)).T, label=name.replace("_", "-"))
        axes.set(xlabel="meta-steps", ylabel=ylabel, title="meta-validation")
        # A validation that diverges leaves the picture.
        values = np.array([y for points in curves.values() for _, y in points])
        least, low, high, most = np.nanquantile(values, (0, 0.1, 0.8, 1))
        margin = 0.05 * (high - low)
        if margin > 0:
            axes.set_ylim(max(least, 2 * low - high) - margin, min(most, 2 * high - low) + margin)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 3))
    save(figure, path)


def training_curve(
    path: Path,
    metrics: Sequence[Mapping[str, Any]],
    names: Mapping[str, str],
    *,
    ylabel: str,
    scale: float = 1.0,
) -> None:
    """Draws entries of `metrics.jsonl` (`names`: entry to label) against the meta-step.

    The vertical axis shows at most twice the range of the first entry, so a diverging entry leaves
    the picture. Nothing is drawn of a run that was not trained.
    """
    if not metrics:
        return
    figure, axes = plt.subplots(figsize=SIZE)
    for name, label in names.items():
        points = [(line["step"], scale * line[name]) for line in metrics if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=label)
        if name == next(iter(names)):
            bottom, top = axes.get_ylim()
    axes.set_ylim(min(bottom, 0.0), min(2 * top - bottom, axes.get_ylim()[1]))
    axes.set(xlabel="meta-steps", ylabel=ylabel)
    axes.legend()
    save(figure, path)


def lines(
    path: Path,
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    *,
    xlabel: str | None,
    ylabel: str,
    title: str,
    scale: float = 1.0,
) -> None:
    """Draws named lines of `(x, y)` points, in panels side by side.

    Without an `xlabel` each panel is labelled by its name.
    """
    figure, grid = plt.subplots(
        1,
        len(panels),
        figsize=(SIZE[0] * len(panels), SIZE[1]),
        squeeze=False,
        sharey=True,
    )
    for axes, (name, rows) in zip(grid[0], panels.items(), strict=True):
        for label, points in rows.items():
            x, y = np.asarray(points).T
            axes.plot(x, scale * y, marker="o", markersize=3, label=label)
        axes.set_xlabel(xlabel or name)
    grid[0][0].set_ylabel(ylabel)
    grid[0][-1].legend()
    figure.suptitle(title)
    save(figure, path)


def regression_tasks(
    path: Path,
    x: np.ndarray,
    truth: np.ndarray,
    support: tuple[np.ndarray, np.ndarray],
    predictions: Mapping[str, Mapping[int, np.ndarray]],
) -> None:
    """Draws fits to sampled tasks: one column per task, one row per model.

    Args:
      path: the PNG to write, with a PDF beside it.
      x: grid `[points]`.
      truth: `[tasks, points]`.
      support: inputs and targets, `[tasks, shots]`.
      predictions: model, then adaptation steps, then `[tasks, points]`.
    """
    num_tasks = len(truth)
    figure, grid = plt.subplots(
        len(predictions),
        num_tasks,
        figsize=(3 * num_tasks, 2.4 * len(predictions)),
        sharex=True,
        squeeze=False,
    )
    for row, (model, by_step) in zip(grid, predictions.items(), strict=True):
        for task, axes in enumerate(row):
            axes.plot(x, truth[task], color=BLACK, label="task")
            shades = np.linspace(0.35, 1.0, len(by_step))
            for shade, (step, values) in zip(shades, by_step.items(), strict=True):
                label = f"{step} step{'s' if step != 1 else ''}"
                axes.plot(x, values[task], color=BLUE, alpha=shade, linestyle="--", label=label)
            axes.scatter(
                support[0][task],
                support[1][task],
                marker="^",
                color=ORANGE,
                zorder=3,
                label="support",
            )
            axes.set(title=model, xlabel="x", ylabel="y")
            axes.label_outer()
    grid[0][-1].legend()
    save(figure, path)


def paths(path: Path, goals: np.ndarray, positions: np.ndarray) -> None:
    """Draws where a point went before and after each adaptation step, one column per task.

    Args:
      path: the PNG to write, with a PDF beside it.
      goals: `[tasks, 2]`.
      positions: `[tasks, adaptation steps + 1, time, 2]`, NaN after the end.
    """
    num_tasks, num_steps = positions.shape[:2]
    figure, row = plt.subplots(1, num_tasks, figsize=(3.2 * num_tasks, 3.4), squeeze=False)
    shades = plt.get_cmap("viridis")(np.linspace(0.9, 0.1, num_steps))
    for axes, goal, paths in zip(row[0], goals, positions, strict=True):
        for step, (places, shade) in enumerate(zip(paths, shades, strict=True)):
            label = "before" if not step else f"{step} step{'s' if step != 1 else ''}"
            axes.plot(*places.T, color=shade, linewidth=1, marker=".", markersize=3, label=label)
        axes.plot(*goal, marker="*", color=ORANGE, markersize=12, linestyle="", label="goal")
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_xlabel("x position")
    row[0][0].set_ylabel("y position")
    row[0][-1].legend()
    save(figure, path)


def contact_sheet(
    path: Path, tasks: Sequence[tuple[np.ndarray, np.ndarray]], *, title: str, num_shown: int
) -> None:
    """Draws the images of tasks, one row per class: support on the left, query on the right.

    Args:
      path: the file to write, of any format that matplotlib knows.
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
    )
    for axes in grid.flat:
        axes.set_axis_off()
    for i, (axes, sheet) in enumerate(zip(grid.flat, sheets, strict=False)):
        axes.set_axis_on()
        axes.grid(False)
        axes.imshow(sheet, interpolation="nearest")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelsize=8)
        ways = tasks[i][0].shape[0]
        axes.set_yticks([(row + 0.5) * (height + line) for row in range(ways)], range(ways))
        axes.set_xticks(centres, labels[: len(centres)])
        axes.set_title(f"task {i}", fontsize=9)
    figure.suptitle(title)
    figure.savefig(path)
    plt.close(figure)


def _tiles(images: np.ndarray, line: int) -> np.ndarray:
    """Arranges images `[rows, columns, height, width, channels]` on blue."""
    rows, columns, height, width, _ = images.shape
    tiles = np.empty((rows, height + line, columns, width + line, 3))
    tiles[:] = (0.6, 0.7, 0.9)
    tiles[:, :height, :, :width] = images.transpose(0, 2, 1, 3, 4)  # grey thrice
    return tiles.reshape(rows * (height + line), columns * (width + line), 3)
