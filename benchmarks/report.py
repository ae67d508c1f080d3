"""Renders the records: runs into the README, benchmarks into `benchmarks/README.md`.

Command: python -m benchmarks.report
"""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import tables
from benchmarks.record import RESULTS
from experiments import few_shot, protocols

README = Path(__file__).parents[1] / "README.md"
# In what a run may differ from its preset that a reader of the table has to know; meta-steps have a
# column of their own.
SHOWN = (
    "carry",
    "compute_dtype",
    "meta_batch_size",
    "resample",
    "inner_learning_rate",
    "num_steps",
)
BEGIN, END = "<!-- results: python -m benchmarks.report -->", "<!-- end of results -->"


def load() -> list[dict[str, Any]]:
    return [
        json.loads(path.read_text()) | {"name": path.parent.name}
        for path in sorted(RESULTS.glob("*/result.json"))
    ]


def sinusoid_table(results: list[dict[str, Any]]) -> list[str]:
    lines = [
        "Sinusoid regression: mean squared error on unseen tasks after 1 and 10 adaptation steps,",
        "with the half-width of its 95% interval.",
        "",
        "| | 5 shots, 1 step | 5 shots, 10 | 10 shots, 1 | 10 shots, 10 | meta-steps | training |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        if result["experiment"] != "sinusoid":
            continue
        rows = {f"[{result['algorithm']}](benchmarks/results/{result['name']})": ""}
        if result["algorithm"] == "maml":
            rows |= {"pretrained": "pretrained ", "randomly initialized": "random "}
        for label, prefix in rows.items():
            cells = [
                _interval(result["evaluation"]["mse"][f"{prefix}K={shots}"], step, 3, 1.0)
                for shots in (5, 10)
                for step in (1, 10)
            ]
            run = ["", ""] if prefix else [f"{result['meta_steps']:,}", _seconds(result)]
            lines.append("| " + " | ".join([label, *cells, *run]) + " |")
    return lines


def few_shot_table(results: list[dict[str, Any]]) -> list[str]:
    lines = [
        "Few-shot classification: accuracy in percent on test tasks of unseen classes, after as",
        "many adaptation steps as the paper takes. The interval is over test tasks, or over seeds",
        "where there are several. Shortened runs are shown as such.",
        "",
        "| | queries | steps | paper | ours | meta-steps | training | device |",
        "|---|---|---|---|---|---|---|---|",
    ]
    # Runs that differ in nothing but the seed are one row.
    cells = collections.defaultdict(list)
    for result in results:
        if result["experiment"] in protocols.PRESETS:
            config = {k: v for k, v in result["config"].items() if k not in ("seed", "overrides")}
            cells[json.dumps([config, result["meta_steps"]], sort_keys=True)].append(result)
    order = list(protocols.PAPER_RESULTS)

    def place(runs: list[dict[str, Any]]) -> tuple[int, str]:
        name = preset_of(runs[0])
        return (order.index(name) if name in order else len(order), name)

    for runs in sorted(cells.values(), key=place):
        rows = [_row(runs, question) for question in few_shot.QUESTIONS]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
    return lines


def preset_of(result: dict[str, Any]) -> str:
    """The preset, also where a run has come to it by `--algorithm`."""
    name, algorithm = result["preset"], result["algorithm"]
    if algorithm == "reptile":
        return name.replace("finn2017/", "nichol2018/")
    if (
        algorithm == "fomaml"
        and protocols.PRESETS[result["experiment"]][name]["algorithm"] == "maml"
    ):
        return f"{name}_first_order"
    return name


def _row(runs: list[dict[str, Any]], question: str) -> list[str]:
    result, config = runs[0], runs[0]["config"]
    name = preset_of(result)
    rows = [run["evaluation"]["accuracy"][question] for run in runs]
    steps = rows[0].get("steps", list(range(len(rows[0]["mean"]))))
    step = min(config["validation_steps"], steps[-1])
    at = steps.index(step)
    if len(runs) == 1:
        ours = _interval(rows[0], at, 2, 100.0)
    else:
        means = [100 * row["mean"][at] for row in rows]
        half_width = 1.96 * np.std(means, ddof=1) / len(means) ** 0.5
        ours = f"{np.mean(means):.2f} ± {half_width:.2f} ({len(runs)} seeds)"
    cell = protocols.PRESETS[result["experiment"]].get(name, config)
    changed = [f"{k}={config[k]}" for k in SHOWN if config.get(k, cell[k]) != cell[k]]
    links = [f"benchmarks/results/{run['name']}" for run in runs]
    return [
        f"[{name}]({links[0]})" + (f" {', '.join(changed)}" if changed else ""),
        question.replace("_", "-"),
        str(step),
        few_shot.interval(protocols.PAPER_RESULTS.get(name, {}).get(question)).replace("+-", "±"),
        ours,
        f"{result['meta_steps']:,} of {prescribed(result):,}",
        f"{np.mean([run['wall_seconds'] for run in runs]):,.0f} s",
        _where(result),
    ]


def prescribed(result: dict[str, Any]) -> int:
    """The meta-steps of the preset, without the command's own flags."""
    presets = protocols.PRESETS[result["experiment"]]
    return presets.get(preset_of(result), presets[result["preset"]])["num_meta_steps"]


def _interval(row: dict[str, Any], step: int, digits: int, scale: float) -> str:
    return f"{scale * row['mean'][step]:.{digits}f} ± {scale * row['ci95'][step]:.{digits}f}"


def _seconds(result: dict[str, Any]) -> str:
    return f"{result['wall_seconds']:.0f} s, {_where(result)}"


def _where(result: dict[str, Any]) -> str:
    device = result["device"]
    if device["platform"] == "cpu":
        return f"{device['cpu_cores']} cores"
    count = result.get("num_devices", 1)
    return device["kind"] if count == 1 else f"{count} x {device['kind']}"


def render() -> str:
    results = load()
    text = README.read_text()
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    tables = [*sinusoid_table(results), "", *few_shot_table(results)]
    return "\n".join([head + BEGIN, *tables, END]) + tail


if __name__ == "__main__":
    README.write_text(render())
    tables.PAGE.write_text(tables.render())
    tables.draw()
