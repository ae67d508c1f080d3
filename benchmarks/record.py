"""Keeps a finished run: copies its result, weights and figures into `benchmarks/results/`.

Command: python -m benchmarks.record WORKDIR [--no-figures] [--data_dir=DIR]

The folder is `EXPERIMENT/PRESET/ALGORITHM/seedN`, where the algorithm is followed by the settings
that differ from the preset, such as `maml,num_meta_steps=1500`. The entry `check` of its
`result.json` is an evaluation of the weights on a few tasks, which `python -m benchmarks.verify
--quick` repeats.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from benchmarks.results_folder import RESULTS, record_folder
from benchmarks.verify import QUICK_TASKS, make_method, recorded_settings, rescored
from metajax import train
from metajax.train.weights import FILE


def record(workdir: Path, *, figures: bool = True, data_dir: str | None = None) -> Path:
    """Copies `result.json`, `metrics.jsonl`, the weights and, where wanted, the figures of a run.

    Raises:
      FileNotFoundError: if the run has no result yet.
    """
    if not (workdir / "result.json").exists():
        raise FileNotFoundError(f"{workdir} has no result.json: let the run finish first.")
    result = json.loads((workdir / "result.json").read_text())
    target = RESULTS / record_folder(result)
    target.mkdir(parents=True, exist_ok=True)
    # An untrained policy has no metrics.
    names = ["result.json", "metrics.jsonl", FILE, *(["*.png", "*.gif"] if figures else [])]
    for source in (path for pattern in names for path in workdir.glob(pattern)):
        shutil.copy(source, target)
    if not (workdir / FILE).exists() and (workdir / "checkpoints").exists():
        # An older run, which has no file of weights.
        method = make_method(result, recorded_settings(result)[1], workdir, data_dir)
        best = train.load(workdir, method.learner, method.params).best
        result["weights"] = {"file": FILE, "sha256": train.save_weights(target, best)}
        train.write_json(target / "result.json", result)
    if (target / FILE).exists():
        rows = rescored(target, eval_tasks=QUICK_TASKS, data_dir=data_dir)
        check = {"eval_tasks": QUICK_TASKS, "evaluation": rows}
        train.write_json(target / "result.json", {**result, "check": check})
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--figures", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--data_dir")
    arguments = parser.parse_args()
    try:
        print(record(arguments.workdir, figures=arguments.figures, data_dir=arguments.data_dir))
    except FileNotFoundError as error:
        parser.error(str(error))
