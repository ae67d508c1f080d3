"""Renders the records: the tables of runs in the README and `docs/results.md`, whose text stays,
and the benchmarks in `benchmarks/README.md`.

Command: python -m benchmarks.report
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from benchmarks import coverage, language_runs, rl_runs, runs, tables
from benchmarks.results_folder import RESULTS

ROOT = Path(__file__).parents[1]
README, PAGE = ROOT / "README.md", ROOT / "docs" / "results.md"
# Between `<!-- table: NAME -->` and `<!-- end -->` of a page.
TABLES: dict[str, Callable[[list[runs.Result]], list[str]]] = {
    "headline": lambda results: [*runs.headline_table(results), *rl_runs.headline_rows(results)],
    "sinusoid": runs.sinusoid_table,
    "few_shot": runs.few_shot_table,
    "navigation": rl_runs.navigation_table,
    "cart_pole": rl_runs.cart_pole_table,
    "locomotion": rl_runs.locomotion_table,
    "language": language_runs.table,
    "coverage": coverage.coverage_table,
}
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)


def load() -> list[runs.Result]:
    """All records.

    `name` is a record's folder below `benchmarks/results`; `origin` the record from whose weights
    it started, if any.
    """
    records = [
        json.loads(path.read_text()) | {"name": str(path.parent.relative_to(RESULTS))}
        for path in sorted(RESULTS.rglob("result.json"))
    ]
    # A record without training has the same weights as its origin.
    by_digest = {r["weights"]["sha256"]: r for r in records if "weights" in r and r["meta_steps"]}
    return [r | {"origin": by_digest.get(r.get("started_from", {}).get("sha256"))} for r in records]


def render(page: Path) -> str:
    """A page with its tables rendered again."""
    results, depth = load(), len(page.relative_to(ROOT).parents) - 1

    def table(match: re.Match[str]) -> str:
        lines = "".join(f"{line}\n" for line in TABLES[match[2]](results))
        return match[1] + lines.replace("](benchmarks/", f"]({'../' * depth}benchmarks/") + match[3]

    return MARKED.sub(table, page.read_text())


if __name__ == "__main__":
    for page in (README, PAGE):
        page.write_text(render(page))
    tables.PAGE.write_text(tables.render())
    tables.draw()
    language_runs.draw(load())
