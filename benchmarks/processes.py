"""The same run over processes and devices: equal parameters, and weak scaling.

Command: python -m benchmarks.processes [--rounds=N] [--only=equality|scaling] [--case=NAME]

The rows of `equality` compare the parameters of one process of four CPU devices with those of one
device, of two processes of two, and of four of one. The rows of `weak scaling` time a meta-update
of Omniglot in one process, and in two with twice the tasks, each pinned to a core.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import timing
from benchmarks.process_worker import CASES, META_STEPS, TASKS_PER_CORE

ROOT = Path(__file__).parents[1]
WHOLE = (1, 4)  # processes, devices of each
OTHERS = ((1, 1), (2, 2), (4, 1))


def together(what: str, case: str, processes: int, devices: int, out: Path) -> None:
    """Runs the processes of a case, of which the first writes `out`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    started = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.process_worker", what, case, address),
                *map(str, (processes, process, devices, out)),
            ],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(processes)
    ]
    try:
        errors = [process.communicate()[1] for process in started]
    finally:
        for process in started:
            process.kill()
    for process, error in zip(started, errors, strict=True):
        if process.returncode:
            raise RuntimeError(f"a process of {case} failed:\n{error[-2000:]}")


def equality(case: str) -> list[dict[str, Any]]:
    """How far the parameters are from those of one process with four devices."""
    with tempfile.TemporaryDirectory() as folder:

        def params(processes: int, devices: int) -> dict[str, np.ndarray]:
            out = Path(folder) / f"{processes}x{devices}.npz"
            together("params", case, processes, devices, out)
            with np.load(out) as found:
                return dict(found)

        whole, rows = params(*WHOLE), []
        for processes, devices in OTHERS:
            found = params(processes, devices)
            rows.append(
                {
                    "rows": "equality",
                    "case": case,
                    "processes": processes,
                    "devices": devices,
                    "meta_steps": META_STEPS,
                    "equal_bits": all(
                        whole[name].tobytes() == found[name].tobytes() for name in whole
                    ),
                    # Of the norm of all parameters.
                    "difference": norm({name: whole[name] - found[name] for name in whole})
                    / norm(whole),
                }
            )
    return rows


def norm(arrays: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in arrays.values())))


def weak_scaling(rounds: int) -> list[dict[str, Any]]:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for processes in (1, 2):
            out = Path(folder) / str(processes)
            together(f"seconds={rounds}", "omniglot", processes, 1, out)
            found[processes] = json.loads(out.read_text())
    return [
        {
            "rows": "weak scaling",
            "case": "omniglot",
            "processes": processes,
            "devices": 1,
            "tasks": TASKS_PER_CORE * processes,
            "seconds": seconds,
            "times_the_tasks": processes * found[1] / seconds,
        }
        for processes, seconds in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--only", choices=["equality", "scaling"])
    arguments = parser.parse_args()

    def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return row["rows"], row["case"], row["processes"], row["devices"]

    if arguments.only != "scaling":
        for case in arguments.case or CASES:
            timing.write("processes", equality(case), key=key)
    if arguments.only != "equality":
        timing.write("processes", weak_scaling(arguments.rounds), key=key)


if __name__ == "__main__":
    main()
