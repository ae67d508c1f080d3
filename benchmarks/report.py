"""Renders the records: runs into the README, benchmarks into `benchmarks/README.md`.

Command: python -m benchmarks.report
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.record import RESULTS
from experiments import omniglot

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- results: python -m benchmarks.report -->", "<!-- end of results -->"

# Percent and half-width of the 95% interval; Finn 2017, table 1 and Nichol 2018, table 2.
PAPERS = {
    ("maml", "5w1s", "transductive"): "98.7 ± 0.4",
    ("maml", "5w5s", "transductive"): "99.9 ± 0.1",
    ("fomaml", "5w1s", "transductive"): "98.3 ± 0.5",
    ("fomaml", "5w5s", "transductive"): "99.2 ± 0.2",
    ("reptile", "5w1s", "transductive"): "97.68 ± 0.04",
    ("reptile", "5w1s", "non_transductive"): "95.39 ± 0.09",
    ("reptile", "5w5s", "transductive"): "99.48 ± 0.06",
    ("reptile", "5w5s", "non_transductive"): "98.90 ± 0.10",
}


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


def omniglot_table(results: list[dict[str, Any]]) -> list[str]:
    lines = [
        "Omniglot: accuracy in percent on test tasks of unseen characters after the last",
        "adaptation step, beside the paper's number. Shortened runs are shown as such.",
        "",
        "| | task | queries | steps | paper | ours | meta-steps | training |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        if result["experiment"] != "omniglot":
            continue
        config = result["config"]
        task = f"{config['ways']}w{config['shots']}s"
        for question in ("transductive", "non_transductive"):
            row = result["evaluation"]["accuracy"][question]
            last = len(row["mean"]) - 1
            lines.append(
                "| "
                + " | ".join(
                    [
                        f"[{result['algorithm']}](benchmarks/results/{result['name']})",
                        task,
                        question.replace("_", "-"),
                        str(last),
                        PAPERS.get((result["algorithm"], task, question), ""),
                        _interval(row, last, 2, 100.0),
                        f"{result['meta_steps']:,} of {_prescribed(result):,}",
                        _seconds(result),
                    ]
                )
                + " |"
            )
    return lines


def _prescribed(result: dict[str, Any]) -> int:
    """The meta-steps of the preset, without the command's own flags."""
    preset = omniglot.PRESETS[result["preset"]]
    if result["algorithm"] != preset["algorithm"]:
        preset = {**preset, **omniglot.BY_ALGORITHM.get(result["algorithm"], {})}
    return preset["num_meta_steps"]


def _interval(row: dict[str, Any], step: int, digits: int, scale: float) -> str:
    return f"{scale * row['mean'][step]:.{digits}f} ± {scale * row['ci95'][step]:.{digits}f}"


def _seconds(result: dict[str, Any]) -> str:
    device = result["device"]
    where = f"{device['cpu_cores']} cores" if device["platform"] == "cpu" else device["kind"]
    return f"{result['wall_seconds']:.0f} s, {where}"


def render() -> str:
    results = load()
    text = README.read_text()
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    tables = [*sinusoid_table(results), "", *omniglot_table(results)]
    return "\n".join([head + BEGIN, *tables, END]) + tail


if __name__ == "__main__":
    README.write_text(render())
    tables.PAGE.write_text(tables.render())
    tables.draw()
