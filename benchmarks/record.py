"""Keeps a finished run: copies its result and figures into `benchmarks/results/`.

Command: python -m benchmarks.record WORKDIR [--no-figures]

The folder says what was run, `EXPERIMENT/PRESET/ALGORITHM/seedN`: the algorithm is followed by
the settings that are not the preset's, such as `maml,num_meta_steps=1500`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from experiments.__main__ import EXPERIMENTS
from experiments.command import with_changes
from experiments.settings import evaluation_config, training_config

RESULTS = Path(__file__).parent / "results"
PLATFORMS = ("cpu", "gpu", "tpu")
# Said otherwise, or no number depends on it.
NOT_NAMED = ("seed", "algorithm", "task_chunk", "steps_per_call", "checkpoint_every")


def named(name: str, platform: str) -> str:
    """The file, but for its ending, that keeps what was measured on a platform."""
    return name if platform == "cpu" else f"{name}_{platform}"


def folder_of(result: dict[str, Any]) -> Path:
    """The folder of a run's record, below `RESULTS`."""
    (launcher,) = (each for each in EXPERIMENTS if each.name == result["experiment"])
    algorithm, config = result["algorithm"], result["config"]
    settings, _ = with_changes(launcher, result["preset"], {"algorithm": algorithm})
    expected = {**training_config(settings), **evaluation_config(settings)}
    changed = [
        f"{name}={config[name]}"
        for name, value in expected.items()
        if name not in NOT_NAMED and config.get(name, value) != value
    ]
    run = ",".join([algorithm, *changed])
    return Path(result["experiment"], result["preset"], run, f"seed{config['seed']}")


def record(workdir: Path, *, figures: bool = True) -> Path:
    """Copies `result.json`, `metrics.jsonl` and, where wanted, the figures of a run.

    Raises:
      FileNotFoundError: if the run has no result yet.
    """
    if not (workdir / "result.json").exists():
        raise FileNotFoundError(f"{workdir} has no result.json: let the run finish first.")
    target = RESULTS / folder_of(json.loads((workdir / "result.json").read_text()))
    target.mkdir(parents=True, exist_ok=True)
    # A policy that is not trained has no metrics.
    patterns = ["result.json", "metrics.jsonl", *(["*.png", "*.gif"] if figures else [])]
    for source in (path for pattern in patterns for path in workdir.glob(pattern)):
        shutil.copy(source, target)
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--figures", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    try:
        print(record(arguments.workdir, figures=arguments.figures))
    except FileNotFoundError as error:
        parser.error(str(error))
