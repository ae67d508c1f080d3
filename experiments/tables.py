"""Tables for the console."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, aligned in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def presets(settings: Mapping[str, Any], columns: Sequence[str]) -> str:
    """The presets by name, with some of their settings."""
    rows = [[name, *(str(getattr(each, c)) for c in columns)] for name, each in settings.items()]
    return aligned([["preset", *columns], *rows])


def by_step(title: str, rows: Mapping[str, Mapping[str, Any]], *, scale: float = 1.0) -> str:
    """A table of evaluations, one row each, at up to eleven evenly spaced adaptation steps.

    An evaluation with `steps` has values for these steps only.
    """
    width = max(map(len, rows))
    values = {
        name: dict(zip(row.get("steps", range(len(row["mean"]))), row["mean"], strict=True))
        for name, row in rows.items()
    }
    last = max(map(max, values.values()))
    sparse = {step for row in values.values() if len(row) <= last for step in row}
    steps = sorted({round(last * i / 10) for i in range(11)} | sparse)
    lines = [f"\n{title}", " " * width + "".join(f"{step:>9}" for step in steps)]
    for name, row in values.items():
        cells = [f"{scale * row[step]:>9.3g}" if step in row else " " * 9 for step in steps]
        lines.append(f"{name:{width}}" + "".join(cells).rstrip())
    return "\n".join(lines)


def interval(cell: Sequence[float | None] | None) -> str:
    """A cell of a paper's table: percent and, where it is given, the half-width of the interval."""
    if cell is None:
        return ""
    value, half_width = cell
    return f"{value:g}" if half_width is None else f"{value:g} +- {half_width:g}"


def evaluations(found: Any, name: str = "") -> dict[str, dict[str, Any]]:
    """The rows in the entry `evaluation` of a result by name, such as `mse K=10`.

    Each has `steps`, `mean` and `ci95`, also where it is a single number.
    """
    if not isinstance(found, Mapping):
        return {}
    if "ci95" not in found:
        return {
            key: row
            for part, each in found.items()
            for key, row in evaluations(each, f"{name} {part}".strip()).items()
        }
    mean = np.atleast_1d(found["mean" if "mean" in found else "accuracy"])
    steps = found.get("steps", range(len(mean)))
    return {name: {"steps": steps, "mean": mean, "ci95": np.atleast_1d(found["ci95"])}}


def shown_steps(steps: Collection[int]) -> list[int]:
    """The adaptation steps that a short table has: none, one, and all."""
    return sorted({0, 1, max(steps)} & set(steps))


def over_seeds(means: Sequence[float], digits: int) -> str:
    """The mean of the results of several seeds, and its 95% interval.

    With few seeds the standard deviation is uncertain as well, so Student's distribution.
    """
    if len(means) == 1:
        return f"{means[0]:.{digits}f}"
    half_width = t.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) / len(means) ** 0.5
    return f"{np.mean(means):.{digits}f} ± {half_width:.{digits}f}"
