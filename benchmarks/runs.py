"""Tables of regression and classification, from the records of runs."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks.results_folder import trained_on
from experiments import few_shot, miniimagenet, omniglot, photographs, protocols, tables
from experiments.settings import training_config

Result = dict[str, Any]
# Differences from the preset that the table mentions; meta-steps have a column of their own.
SHOWN = (
    "carry",
    "compute_dtype",
    "meta_batch_size",
    "resample",
    "queries",
    "inner_learning_rate",
    "num_steps",
    "outer_learning_rate",
    "outer_schedule",
)
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    launcher.name: {name: training_config(each) for name, each in launcher.presets.items()}
    for launcher in (omniglot.EXPERIMENT, miniimagenet.EXPERIMENT, photographs.EXPERIMENT)
}


def sinusoid_table(results: list[Result]) -> list[str]:
    lines = [
        "| | 5 shots, 1 step | 5 shots, 10 | 10 shots, 1 | 10 shots, 10 | median, 10 | "
        "5 % and 95 % | diverging | meta-steps | training |",
        "|" + "---|" * 10,
    ]
    for runs in _sinusoid(results):
        result = runs[0]
        _, preset, name, _ = result["name"].split("/")
        label = name.replace(",", ", ") + (f", {preset}" if preset != "finn2017" else "")
        link = f"benchmarks/results/{result['name']}"
        rows = {f"[{label}]({link}){num_seeds(runs)}": ""}
        rows |= {f"{label}, last state": "last "} if len(runs) > 1 else {}
        if (preset, name) == ("finn2017", "maml"):
            rows |= {"pretrained": "pretrained ", "randomly initialized": "random "}
            rows |= {"oracle, which does not adapt": "oracle "}
        for text, prefix in rows.items():
            found = {
                shots: [run["evaluation"]["mse"][f"{prefix}K={shots}"] for run in runs]
                for shots in (5, 10)
            }
            last = len(found[10][0]["mean"]) - 1
            cells = [
                over_seeds(found[shots], min(step, last), 3)
                for shots in (5, 10)
                for step in (1, 10)
            ]
            cells += [
                tables.over_seeds([row["quantiles"]["0.5"][last] for row in found[10]], 3),
                " and ".join(
                    f"{np.mean([row['quantiles'][q][last] for row in found[10]]):.3f}"
                    for q in ("0.05", "0.95")
                ),
                f"{100 * np.mean([row['increased'][last] for row in found[10]]):.1f} %",
            ]
            seconds = f"{np.mean([run['wall_seconds'] for run in runs]):.0f} s, {where(result)}"
            run = ["", ""] if prefix else [f"{result['meta_steps']:,}", seconds]
            line = "| " + " | ".join([text, *cells, *run]) + " |"
            lines.append(line.replace("nan ± nan", "not finite"))
    return lines


def _sinusoid(results: list[Result]) -> list[list[Result]]:
    return by_seeds(result for result in results if result["experiment"] == "sinusoid")


def num_seeds(runs: list[Result]) -> str:
    return f" ({len(runs)} seeds)" if len(runs) > 1 else ""


def headline_table(results: list[Result]) -> list[str]:
    """The headline table: sine waves, and every cell of a paper's table run at full length."""
    lines = ["| | the paper | here | training |", "|---|---|---|---|"]
    for runs in _sinusoid(results):
        if runs[0]["name"].startswith("sinusoid/finn2017/maml/"):
            rows = [run["evaluation"]["mse"]["K=10"] for run in runs]
            error = f"{over_seeds(rows, 1, 2)} after 1 step, {over_seeds(rows, 10, 2)} after 10"
            lines.append(_headline("sine waves, 10 points: squared error", "", error, runs))
    for runs in _classification(results):
        result, name = runs[0], cell_name(runs[0])
        paper = protocols.PAPER_RESULTS.get(name, {}).get("transductive")
        if paper and "," not in result["name"]:  # at full length, with the preset's settings
            row = _row(runs, "transductive")
            what = f"{name}: transductive accuracy (%)"
            lines.append(_headline(what, row[3], row[4], runs))
    return lines


def _headline(what: str, paper: str, ours: str, runs: list[Result]) -> str:
    link = f"[{what}](benchmarks/results/{runs[0]['name']}){num_seeds(runs)}"
    return f"| {link} | {paper} | {ours} | {training(runs)} |"


def training(runs: list[Result]) -> str:
    """The mean wall time of the runs, and the device."""
    seconds = np.mean([run["wall_seconds"] for run in runs])
    return f"{seconds:,.0f} s, {where(runs[0])}"


def few_shot_table(results: list[Result]) -> list[str]:
    lines = [
        "| | queries | steps | paper | ours | meta-steps | training | device |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for runs in _classification(results):
        rows = [_row(runs, question) for question in few_shot.QUESTIONS]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
    return lines


def _classification(results: list[Result]) -> list[list[Result]]:
    """The runs of classification, in the order of the papers' tables."""
    order = list(protocols.PAPER_RESULTS)

    def place(runs: list[Result]) -> tuple[int, str]:
        name = cell_name(runs[0])
        return (order.index(name) if name in order else len(order), name)

    return sorted(by_seeds(r for r in results if r["experiment"] in PRESETS), key=place)


def cell_name(result: Result) -> str:
    """The preset, also that of a run with `--algorithm` of another preset."""
    name, algorithm = result["preset"], result["algorithm"]
    if algorithm == "reptile":
        return name.replace("finn2017/", "nichol2018/")
    if algorithm == "fomaml" and PRESETS[result["experiment"]][name]["algorithm"] == "maml":
        return f"{name}_first_order"
    return name


def _row(runs: list[Result], question: str) -> list[str]:
    result, config = runs[0], runs[0]["config"]
    name = cell_name(result)
    rows = [run["evaluation"]["accuracy"][question] for run in runs]
    steps = rows[0].get("steps", list(range(len(rows[0]["mean"]))))
    step = min(config["validation_steps"], steps[-1])
    at = steps.index(step)
    cell = PRESETS[result["experiment"]].get(name) or config
    changed = [f"{k}={config[k]}" for k in SHOWN if k in cell and config.get(k, cell[k]) != cell[k]]
    if earlier := config.get("earlier_num_meta_steps"):
        changed.append("lengthened after " + ", ".join(f"{steps:,}" for steps in earlier))
    if origin := result.get("origin"):
        changed.append(f"weights of {cell_name(origin)}")
    links = [f"benchmarks/results/{run['name']}" for run in runs]
    return [
        f"[{name}]({links[0]})" + (f" {', '.join(changed)}" if changed else ""),
        question.replace("_", "-"),
        str(step),
        tables.interval(protocols.PAPER_RESULTS.get(name, {}).get(question)).replace("+-", "±"),
        over_seeds(rows, at, 2, 100.0) + num_seeds(runs),
        f"{all_meta_steps(result):,} of {prescribed(result):,}",
        f"{np.mean([all_seconds(run) for run in runs]):,.0f} s",
        where(result),
    ]


def all_meta_steps(result: Result) -> int:
    """The meta-steps of a run, and of the run from whose weights it started."""
    origin = result.get("origin")
    return result["meta_steps"] + (all_meta_steps(origin) if origin else 0)


def all_seconds(result: Result) -> float:
    """The seconds of training of a run, and of the run from whose weights it started."""
    origin = result.get("origin")
    return result["wall_seconds"] + (all_seconds(origin) if origin else 0)


def prescribed(result: Result) -> int:
    """The meta-steps of the preset, whatever the flags of the command."""
    presets = PRESETS[result["experiment"]]
    return presets.get(cell_name(result), presets[result["preset"]])["num_meta_steps"]


def by_seeds(results: Iterable[Result]) -> list[list[Result]]:
    """Groups runs of one platform that differ only in the seed."""
    cells = collections.defaultdict(list)
    for result in results:
        config = {k: v for k, v in result["config"].items() if k not in ("seed", "overrides")}
        platform = trained_on(result)["device"]["platform"]
        cells[json.dumps([config, result["meta_steps"], platform], sort_keys=True)].append(result)
    return list(cells.values())


def over_seeds(rows: list[dict[str, Any]], step: int, digits: int, scale: float = 1.0) -> str:
    """Mean and interval: over the tasks of one run, or over the seeds of several."""
    if len(rows) == 1:
        return interval(rows[0], step, digits, scale)
    return tables.over_seeds([scale * row["mean"][step] for row in rows], digits)


def interval(row: dict[str, Any], step: int, digits: int, scale: float) -> str:
    return f"{scale * row['mean'][step]:.{digits}f} ± {scale * row['ci95'][step]:.{digits}f}"


def where(result: Result) -> str:
    trained = trained_on(result)
    device, seconds = trained["device"], trained.get("seconds", {})
    if seconds.keys() - {device.get("kind")}:  # evaluated or continued on another machine
        return ", ".join(f"{kind} ({spent:,.0f} s)" for kind, spent in seconds.items())
    if device["platform"] == "cpu":
        count = device["cpu_cores"]
        return f"{count} core{'s' if count > 1 else ''}"
    count = trained.get("num_devices", 1)
    return device["kind"] if count == 1 else f"{count} x {device['kind']}"
