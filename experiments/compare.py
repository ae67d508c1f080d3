"""Compares finished runs: the settings in which they differ, their results, and a figure of both.

Command:   python -m experiments.compare RUN RUN ... [--out=FOLDER]
Hardware:  any
Wall time: some seconds
Expected:  comparison.txt, comparison.html, comparison.png and comparison.pdf in the folder

A run is a working directory, a folder of `evaluations/` in one, or a record of
`benchmarks/results`: whatever has a `result.json`.
"""

from __future__ import annotations

import base64
import html
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import plots, tables
from experiments.parser import Parser
from metajax import train

MOST_PANELS = 3


class Run(NamedTuple):
    """A finished run.

    Attributes:
      name: what tells it from the others.
      settings: its settings, and how it came about.
      rows: its evaluations by name, such as `mse K=10`, with `steps`, `mean` and `ci95`.
      metrics: the lines of its `metrics.jsonl`, if it has one.
    """

    name: str
    settings: Mapping[str, Any]
    rows: Mapping[str, Mapping[str, Any]]
    metrics: Sequence[Mapping[str, Any]]


def read(path: Path, name: str) -> Run:
    """Reads a run.

    Raises:
      FileNotFoundError: if it has no `result.json`.
      ValueError: if that file is not one of a run.
    """
    if not (path / "result.json").exists():
        raise FileNotFoundError(f"{path} has no result.json: it is no run, or has not finished.")
    result = train.read_json(path / "result.json")
    try:
        settings = {
            **{key: value for key, value in result["config"].items() if key != "overrides"},
            "best_step": result.get("best_step"),
            "device": result["device"]["kind"],
            "num_devices": result.get("num_devices"),
            "wall_seconds": round(result["wall_seconds"]),
            "commit": (result["commit"] or "unknown")[:10],
            **{f"{package} version": version for package, version in result["versions"].items()},
        }
        rows = tables.evaluations(result["evaluation"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path / 'result.json'} is not what a launcher writes: evaluate the run again."
        ) from error
    metrics = train.read_metrics(path) if (path / "metrics.jsonl").exists() else []
    return Run(name, settings, rows, metrics)


def names(paths: Sequence[Path]) -> list[str]:
    """The parts of the paths in which they differ."""
    parts = [path.resolve().parts for path in paths]
    if len(set(parts)) < len(parts):
        raise ValueError("the same run is named twice.")
    start = _common([each[:-1] for each in parts])
    end = _common([each[:start:-1] for each in parts]) if len(parts) > 1 else 0
    return ["/".join(each[start : len(each) - end]) for each in parts]


def _common(parts: Sequence[Sequence[str]]) -> int:
    """How many parts all begin with."""
    same = (len(set(column)) == 1 for column in zip(*parts, strict=False))
    return sum(itertools.takewhile(bool, same))


def differing(runs: Sequence[Run]) -> list[str]:
    """The settings that not all runs share."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    return [key for key in keys if len({str(run.settings.get(key)) for run in runs}) > 1]


def shared_rows(runs: Sequence[Run]) -> list[str]:
    """The evaluations that several runs have, or else all of them."""
    keys = dict.fromkeys(key for run in runs for key in run.rows)
    several = [key for key in keys if sum(key in run.rows for run in runs) > 1]
    return several or list(keys)


def table(runs: Sequence[Run]) -> list[list[str]]:
    """Settings and results by run; a result with the half-width of its 95% interval."""
    rows = [["", *(run.name for run in runs)]]
    rows += [[key, *(_shown(run.settings.get(key, "")) for run in runs)] for key in differing(runs)]
    for key in dict.fromkeys(key for run in runs for key in run.rows):
        by_run = [_by_step(run.rows.get(key)) for run in runs]
        steps = {step for values in by_run for step in values}
        for step in tables.shown_steps(steps):
            label = f"{key}, {step} step{'s' if step != 1 else ''}" if len(steps) > 1 else key
            rows.append([label, *(_interval(values.get(step)) for values in by_run)])
    return rows


def _by_step(row: Mapping[str, Any] | None) -> dict[int, tuple[float, float]]:
    if row is None:
        return {}
    values = zip(row["mean"], row["ci95"], strict=True)
    return dict(zip(row["steps"], values, strict=True))


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _interval(value: tuple[float, float] | None) -> str:
    return "" if value is None else f"{value[0]:.4g} ± {value[1]:.2g}"


def draw(path: Path, runs: Sequence[Run]) -> None:
    """Draws the shared evaluations by adaptation step, and the meta-validation of the training."""
    panels = {
        name: {run.name: run.rows[name] for run in runs if name in run.rows}
        for name in shared_rows(runs)[:MOST_PANELS]
    }
    metric = next(
        (key for run in runs for line in run.metrics for key in line if _is_validation(key, line)),
        "",
    )
    curves = {
        run.name: [(line["step"], line[metric]) for line in run.metrics if metric in line]
        for run in runs
    }
    plots.comparison(path, panels, curves, ylabel=metric.rpartition("/")[2])


def _is_validation(key: str, line: Mapping[str, Any]) -> bool:
    return key.startswith("validation/") and np.ndim(line[key]) == 0


STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; margin: 1rem auto; max-width: 70rem; padding: 0 1rem; }
div { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #8886; padding: .25rem .75rem; text-align: left; }
img { background: white; max-width: 100%; }
"""


def page(rows: Sequence[Sequence[str]], figure: Path) -> str:
    """One page of HTML with the table and the figure."""

    def line(cells: Sequence[str], tag: str) -> str:
        first, *others = (html.escape(cell) for cell in cells)
        return f"<tr><th>{first}</th>{''.join(f'<{tag}>{x}</{tag}>' for x in others)}</tr>"

    body = "\n".join([line(rows[0], "th"), *(line(cells, "td") for cells in rows[1:])])
    image = base64.b64encode(figure.read_bytes()).decode()
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Comparison of runs</title>\n<style>{STYLE}</style>\n<h1>Comparison of runs</h1>\n"
        f"<div><table>\n{body}\n</table></div>\n"
        f'<p><img alt="Evaluation and training" src="data:image/png;base64,{image}"></p>\n</html>\n'
    )


def compare(paths: Sequence[Path], out: Path) -> str:
    """Writes the comparison to a folder, and returns its text."""
    runs = [read(path, name) for path, name in zip(paths, names(paths), strict=True)]
    rows = table(runs)
    text = tables.aligned(rows)
    out.mkdir(parents=True, exist_ok=True)
    (out / "comparison.txt").write_text(text + "\n", encoding="utf-8")
    draw(out / "comparison.png", runs)
    (out / "comparison.html").write_text(page(rows, out / "comparison.png"), encoding="utf-8")
    return text


def main() -> None:
    """The command."""
    parser = Parser(
        "python -m experiments.compare",
        "Compares runs: the settings in which they differ, and their results.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a workdir or a record")
    parser.add_argument("--out", type=Path, default=Path("runs/comparison"), help="a folder")
    arguments = parser.parse_args()
    try:
        print(compare(arguments.runs, arguments.out))
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"--out={arguments.out} cannot be written ({error.strerror}): name a folder")
    print(f"\n{arguments.out / 'comparison.html'}, text and figures beside it")


if __name__ == "__main__":
    main()
