"""Renders the records of `benchmarks/results` into a page, by the project's own report.

A line `<!-- results -->` becomes the results page with its tables rendered anew, and a line
`<!-- records -->` a section for each record: its commands, its verification and its figures. The
tables link to these sections, and the joint figures are drawn anew. `<!-- benchmarks -->` becomes
the page of the benchmarks, and `<!-- launchers -->` what the README says about launchers and jobs.
"""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from benchmarks import figures, language_runs, report, tables
from benchmarks.results_folder import RESULTS
from metajax.train.weights import FILE

LINK = re.compile(r"\]\((?:\.\./)*benchmarks/results/([^)]*)/seed\d+(?:_\w+)?\)")
FILE_LINK = re.compile(r"\[([^\]]*)\]\(((?:benchmarks|experiments)/[^)]*)\)")
# The papers' figures, with all of their methods, and the losses of the language models.
JOINT = re.compile(r"\]\(\.\./benchmarks/(?:figures/)?(\w+\.png)\)")
OTHER_LINK = re.compile(r"\[([^\]]*)\]\((?:\.\./)*benchmarks/results\)")


def results() -> str:
    """The results page below its title, with links to the sections of this page."""
    text = report.render(report.PAGE).partition("\n")[2]
    text = OTHER_LINK.sub(r"`\1`", text)
    text = JOINT.sub(r"](_figures/\1)", text)
    text = LINK.sub(lambda match: f"](#{anchor(match[1])})", text)
    return text.replace(" ± ", "\u00a0±\u00a0")  # an interval stays on one line


def records() -> str:
    """A section for each record; runs that differ in the seed only share one."""
    groups = itertools.groupby(report.load(), key=lambda result: folder(result["name"]))
    return "\n".join(section(name, list(runs)) for name, runs in groups)


def benchmarks() -> str:
    """The benchmarks' page below its title."""
    text = tables.render().partition("\n")[2]
    return re.sub(r"\]\((\w+\.png)\)", r"](../benchmarks/\1)", text)


def launchers() -> str:
    """The README's section of launchers, without links to files that are no pages."""
    text = report.README.read_text().partition("\n## Experiments\n")[2].partition("\n## ")[0]
    text = re.sub(r"^### ", "## ", text, flags=re.MULTILINE)
    return FILE_LINK.sub(r"`\2`", text)


def section(name: str, runs: list[dict[str, Any]]) -> str:
    experiment, *path, run = name.split("/")
    algorithm, *settings = run.split(",")
    lines = [f"({anchor(name)})=", f"### {experiment} {'/'.join(path)}: {algorithm}", ""]
    if settings:
        lines += ["Settings other than the preset's: " + ", ".join(f"`{s}`" for s in settings), ""]
    lines += ["```bash", *(command(run) for run in runs), "```", ""]
    verified = [run["name"] for run in runs if (RESULTS / run["name"] / FILE).exists()]
    if verified:
        lines += ["Verification, from the recorded weights:", "", "```bash"]
        lines += [f"python -m benchmarks.verify {shlex.quote(each)}" for each in verified]
        lines += ["```", ""]
    else:
        lines += ["This record has no weights; its verification is to run the command again.", ""]
    lines += [f"{provenance(runs)}", ""]
    figures = [
        path
        for run in runs
        for path in sorted((RESULTS / run["name"]).iterdir())
        if path.suffix in (".png", ".gif")
    ]
    lines += [line for path in figures for line in (figure(path), "")]
    return "\n".join(lines)


def command(result: dict[str, Any]) -> str:
    """The command, with a directory of its own: a run refuses that of another."""
    given = result["command"]
    if "--workdir" in given:
        return given
    return f"{given} --workdir={shlex.quote('runs/' + result['name'])}"


def provenance(runs: list[dict[str, Any]]) -> str:
    """Where, with what and for how long; what several runs have in common is said once."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        versions = ", ".join(f"{k} {run['versions'][k]}" for k in ("python", "jax", "optax"))
        groups.setdefault(f"{run['device']['kind']}, {versions}", []).append(run)
    sentences = []
    for where, same in groups.items():
        commits = dict.fromkeys((run["commit"] or "unknown")[:10] for run in same)
        seconds = " and ".join(dict.fromkeys(f"{run['wall_seconds']:,.0f} s" for run in same))
        sentences.append(f"{where}, commit {', '.join(commits)}; {seconds}.")
    return " ".join(sentences)


def figure(path: Path) -> str:
    words = path.stem.replace("_", " ")
    return f"![{words}](../{path.relative_to(report.ROOT)})"


def folder(name: str) -> str:
    return name.rpartition("/")[0]


def anchor(name: str) -> str:
    return "record-" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def insert(app: Sphinx, docname: str, source: list[str]) -> None:
    for render in (results, records, benchmarks, launchers):
        marker = f"<!-- {render.__name__} -->"
        if marker in source[0]:
            source[0] = source[0].replace(marker, render())
            for path in RESULTS.rglob("result.json"):
                app.env.note_dependency(str(path), docname=docname)


def draw(app: Sphinx) -> None:
    folder = Path(app.srcdir) / "_figures"
    figures.draw(folder)
    language_runs.draw(report.load(), folder / language_runs.FIGURE.name)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", draw)
    app.connect("source-read", insert)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
