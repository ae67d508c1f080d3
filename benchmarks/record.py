"""Keeps a finished run: copies its result and figures into `benchmarks/results/`.

Command: python -m benchmarks.record WORKDIR [NAME] [--no-figures]
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PLATFORMS = ("cpu", "gpu", "tpu")


def named(name: str, platform: str) -> str:
    """The file, but for its ending, that keeps what was measured on a platform."""
    return name if platform == "cpu" else f"{name}_{platform}"


def record(workdir: Path, name: str | None = None, *, figures: bool = True) -> Path:
    """Copies `result.json`, `metrics.jsonl` and, where wanted, the figures of a run.

    Raises:
      FileNotFoundError: if the run has no result yet.
    """
    if not (workdir / "result.json").exists():
        raise FileNotFoundError(f"{workdir} has no result.json: let the run finish first.")
    result = json.loads((workdir / "result.json").read_text())
    target = RESULTS / (name or f"{result['experiment']}_{result['algorithm']}")
    target.mkdir(parents=True, exist_ok=True)
    # A policy that is not trained has no metrics.
    patterns = ["result.json", "metrics.jsonl", *(["*.png", "*.gif"] if figures else [])]
    for source in (path for pattern in patterns for path in workdir.glob(pattern)):
        shutil.copy(source, target)
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("name", nargs="?")
    parser.add_argument("--figures", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    try:
        print(record(arguments.workdir, arguments.name, figures=arguments.figures))
    except FileNotFoundError as error:
        parser.error(str(error))
