"""Renders the records: runs into the README, benchmarks into `benchmarks/README.md`.

Command: python -m benchmarks.report
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import rl_runs, runs, tables
from benchmarks.record import RESULTS

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- results: python -m benchmarks.report -->", "<!-- end of results -->"


def load() -> list[runs.Result]:
    return [
        json.loads(path.read_text()) | {"name": path.parent.name}
        for path in sorted(RESULTS.glob("*/result.json"))
    ]


def render() -> str:
    results = load()
    head, rest = README.read_text().split(BEGIN)
    _, tail = rest.split(END)
    parts = (
        runs.sinusoid_table(results),
        runs.few_shot_table(results),
        rl_runs.navigation_table(results),
        rl_runs.locomotion_table(results),
    )
    shown = "\n\n".join("\n".join(part) for part in parts if part)
    return "\n".join([head + BEGIN, shown, END]) + tail


if __name__ == "__main__":
    README.write_text(render())
    tables.PAGE.write_text(tables.render())
    tables.draw()
