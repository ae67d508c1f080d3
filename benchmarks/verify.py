"""Evaluates the weights of records again, and compares with the recorded numbers.

Command: python -m benchmarks.verify FOLDER [FOLDER ...] | --all  [--quick] [--data_dir=DIR]

FOLDER is below `benchmarks/results`, such as `omniglot/finn2017/omniglot_5w1s/maml/seed0`. The test
tasks are those of the record, drawn from the same seed. `--quick` repeats an evaluation on a few
tasks, which the record holds as well. Exits with 1 if a number differs by more than rounding.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.results_folder import RESULTS
from experiments.command import Command, Experiment
from experiments.launchers import EXPERIMENTS
from experiments.settings import UsageError
from experiments.skeleton import Method
from metajax.train.weights import FILE, load_state

# Accuracies are means of hits: one hit of 600 tasks of five queries is 3e-4. Another version of XLA
# rounds differently and may change single hits; a wrong network is off by far more.
TOLERANCE = 2e-3
QUICK_TASKS = 20


def recorded_settings(result: dict[str, Any]) -> tuple[Experiment, Any]:
    """The launcher and the settings of a record."""
    (launcher,) = (each for each in EXPERIMENTS if each.name == result["experiment"])
    preset, config = launcher.presets[result["preset"]], result["config"]
    known = {field.name for field in dataclasses.fields(preset)}
    return launcher, dataclasses.replace(preset, **{k: config[k] for k in config if k in known})


def rescored(
    folder: Path, *, eval_tasks: int | None = None, data_dir: str | None = None
) -> dict[str, Any]:
    """Computes the rows of an evaluation from the weights in a folder.

    Args:
      folder: the folder of `result.json` and the weights.
      eval_tasks: the number of test tasks; by default that of the record.
      data_dir: the folder of the data, see the launcher's flag.
    """
    result = json.loads((folder / "result.json").read_text())
    _, settings = recorded_settings(result)
    if eval_tasks is not None:
        settings = dataclasses.replace(settings, eval_tasks=eval_tasks)
    method = make_method(result, settings, folder, data_dir)
    return dict(method.rescore(load_state(folder, method.learner.init(method.params))))


def make_method(
    result: dict[str, Any], settings: Any, folder: Path, data_dir: str | None
) -> Method:
    """The method of a record's command."""
    launcher, _ = recorded_settings(result)
    if launcher.build is None:
        raise UsageError(f"{folder}: {launcher.name} is no single run.")
    launch = dataclasses.replace(launcher.launch, mode="eval")
    if data_dir is not None:
        launch = dataclasses.replace(launch, data_dir=data_dir)
    command = Command(launcher.name, result["preset"], settings, (), launch, folder, None)
    return launcher.build(command)


def differences(found: dict[str, Any], recorded: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The largest difference of each row that both have, relative to its largest entry."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(
        found, is_leaf=lambda x: isinstance(x, dict) and "mean" in x
    ):
        row: Any = recorded
        for key in path:
            row = row.get(key.key, {})
        if "mean" not in row:
            continue
        ours, theirs = np.asarray(leaf["mean"]), np.asarray(row["mean"])
        name = "/".join(str(key.key) for key in path)
        yield name, float(np.max(np.abs(ours - theirs)) / max(np.max(np.abs(theirs)), 1e-12))


def verify(folder: Path, *, quick: bool = False, data_dir: str | None = None) -> bool:
    """Compares a record with its weights, prints it, and returns whether they agree."""
    result = json.loads((folder / "result.json").read_text())
    recorded, tasks = result["evaluation"], None
    if quick:
        recorded, tasks = result["check"]["evaluation"], result["check"]["eval_tasks"]
    found = rescored(folder, eval_tasks=tasks, data_dir=data_dir)
    rows = dict(differences(found, recorded))
    off = {name: value for name, value in rows.items() if not value <= TOLERANCE}
    print(f"{folder}: {len(rows)} rows, largest difference {max(rows.values()):.1e}", flush=True)
    for name, value in off.items():
        print(f"  {name} differs by {value:.2g} of its size")
    return bool(rows) and not off


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", help="below benchmarks/results")
    parser.add_argument("--all", action="store_true", help="every record that has weights")
    parser.add_argument("--quick", action="store_true", help=f"on {QUICK_TASKS} tasks")
    parser.add_argument("--data_dir")
    arguments = parser.parse_args()
    folders = [RESULTS / name for name in arguments.folders]
    if arguments.all:
        folders = sorted(path.parent for path in RESULTS.rglob(FILE))
    if not folders:
        parser.error("name a record, or use --all.")
    for folder in folders:
        if not (folder / FILE).exists():
            parser.error(f"{folder} has no {FILE}.")
    options = {"quick": arguments.quick, "data_dir": arguments.data_dir}
    try:
        failed = [folder for folder in folders if not verify(folder, **options)]
    except UsageError as error:
        parser.error(str(error))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
