"""Table and figure of language models that learn from what they read, from the records of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.runs import Result, by_seeds, over_seeds, where
from experiments import language, plots

FIGURE = Path(__file__).parent / "language.png"
ORDER = list(language.PRESETS)


def groups(results: list[Result]) -> list[list[Result]]:
    """The runs of each arm, which differ in the seed."""
    runs = by_seeds(r for r in results if r["experiment"] == "language")
    return sorted(runs, key=lambda each: ORDER.index(each[0]["preset"]))


def table(results: list[Result]) -> list[str]:
    """Nats per byte on unseen contexts, for each way in which an arm reads them."""
    lines = [
        "| | reads | mean | first chunk | last quarter | fall | meta-steps | training | device |",
        "|" + "---|" * 9,
    ]
    for runs in groups(results):
        seeds = f" ({len(runs)} seeds)" if len(runs) > 1 else ""
        for way in runs[0]["evaluation"]["loss"]:
            rows = [run["evaluation"]["loss"][way] for run in runs]
            cells = [
                f"[{runs[0]['preset']}](benchmarks/results/{runs[0]['name']}){seeds}",
                way,
                over_seeds([row["mean_loss"] for row in rows], 0, 3),
                over_seeds([row["loss"] for row in rows], 0, 3),
                over_seeds([last_quarter(row) for row in rows], 0, 3),
                over_seeds([row["fall"] for row in rows], 0, 3),
                f"{runs[0]['meta_steps']:,}",
                f"{np.mean([run['wall_seconds'] for run in runs]):,.0f} s",
                where(runs[0]),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def last_quarter(row: dict[str, Any]) -> dict[str, Any]:
    """The mean of the last chunks; the half-width is the mean of theirs, an upper bound."""
    losses = row["loss"]
    quarter = max(len(losses["mean"]) // 4, 1)
    return {name: [np.mean(losses[name][-quarter:])] for name in ("mean", "ci95")}


def draw(results: list[Result], path: Path = FIGURE) -> None:
    """The loss by position of every arm: the interval of a single run, or the range over seeds."""
    rows: dict[str, Any] = {}
    for runs in groups(results):
        for way in runs[0]["evaluation"]["loss"]:
            if way == "without inner steps" and runs[0]["algorithm"] in language.LEARNS:
                continue
            found = [run["evaluation"]["loss"][way]["loss"] for run in runs]
            means = np.array([row["mean"] for row in found])
            spread = np.ptp(means, axis=0) / 2 if len(runs) > 1 else found[0]["ci95"]
            name = runs[0]["preset"] + (", " + way if way == "dynamic evaluation" else "")
            rows[name] = {"mean": means.mean(axis=0), "ci95": spread}
    if rows:
        plots.adaptation_curves(
            path,
            rows,
            ylabel="nats per byte",
            title="unseen files of Python's standard library",
            xlabel="position in the context, in chunks",
        )
