"""A day of checkpoints and validations: memory, threads, open files and the working directory.

Command: python -m benchmarks.endurance [--checkpoints=N] [--every=SECONDS]

A run that checkpoints and validates every twenty seconds does so 4,320 times a day. Here the
launcher of sine waves does it every ten meta-steps, which takes half an hour. Needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.results_folder import RESULTS
from metajax import train

ROOT = Path(__file__).parents[1]
RECORD = "endurance.jsonl"
STEPS = 10  # of a checkpoint
# What is sampled, in the order of a sample, after the number of checkpoints so far.
SAMPLED = ("resident_bytes", "threads", "open_files", "checkpoint_files", "checkpoint_bytes")


def command(checkpoints: int, workdir: Path) -> list[str]:
    each = [
        f"--{name}={STEPS}" for name in ("steps_per_call", "validate_every", "checkpoint_every")
    ]
    settings = [f"--num_meta_steps={STEPS * checkpoints}", "--meta_batch_size=2", "--eval_tasks=4"]
    return ["-m", "experiments.sinusoid", *settings, *each, f"--workdir={workdir}"]


def sample(process: int, workdir: Path) -> list[int] | None:
    """One sample of a process and its checkpoints; `None` once it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
        told = dict(line.split(":", 1) for line in status.splitlines())
        open_files = len(os.listdir(f"/proc/{process}/fd"))
        memory = 1024 * int(told["VmRSS"].split()[0])
    except (OSError, KeyError):
        return None
    sizes = []
    for folder, _, names in os.walk(workdir / "checkpoints"):  # which changes meanwhile
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                sizes.append(os.stat(os.path.join(folder, name)).st_size)
    return [memory, int(told["Threads"]), open_files, len(sizes), sum(sizes)]


def samples(process: subprocess.Popen[Any], workdir: Path, every: float) -> Iterator[list[int]]:
    """Samples of the training, each after the number of checkpoints."""
    metrics = workdir / "metrics.jsonl"
    while process.poll() is None:
        time.sleep(every)
        lines = metrics.read_bytes().rsplit(b"\n", 2) if metrics.exists() else ()
        found = sample(process.pid, workdir)
        if len(lines) > 1 and found:
            yield [json.loads(lines[-2])["step"] // STEPS, *found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", type=int, default=4320)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between samples")
    parser.add_argument("--record", type=Path, default=RESULTS / RECORD)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        begun = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *command(arguments.checkpoints, workdir)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        found = list(samples(process, workdir, arguments.every))
        if process.wait():
            sys.exit("the run failed")
        # Of the training: the evaluation after it compiles other programs.
        found = [each for each in found if each[0] < arguments.checkpoints]
        row = {
            "benchmark": "endurance",
            "checkpoints": arguments.checkpoints,
            "seconds": time.perf_counter() - begun,
            "columns": ["checkpoint", *SAMPLED],
            "samples": found,
            "workdir_bytes": sum(
                path.stat().st_size for path in workdir.rglob("*") if path.is_file()
            ),
            "metrics_bytes": (workdir / "metrics.jsonl").stat().st_size,
            "command": f"python -m benchmarks.endurance --checkpoints={arguments.checkpoints}",
            **train.provenance(),
        }
    arguments.record.write_text(json.dumps(row) + "\n")
    print(json.dumps({**row, "samples": len(found)}))


if __name__ == "__main__":
    main()
