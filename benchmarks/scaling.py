"""One meta-update over several devices: strong and weak scaling, and their communication.

Command: python -m benchmarks.scaling [--devices=N] [--rounds=N]

On a CPU all devices share the cores that a single device already uses, so strong scaling is limited
by the number of cores. The rows of `cores` compare one core with two, by child processes that are
pinned to that many.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
from typing import Any

import jax

import metajax
from benchmarks import problems, timing
from metajax.machine import num_cores

TASKS = 32


def all_reduces(program: jax.stages.Compiled) -> dict[str, int]:
    """The number of all-reduces in a program, and the bytes that they sum."""
    found = re.findall(r" = (.*?) all-reduce(?:-start)?\(", program.as_text() or "")
    arrays = [array for shapes in found for array in re.findall(r"[a-z]+(\d+)\[([\d,]*)\]", shapes)]
    return {
        "all_reduces": len(found),
        "all_reduce_bytes": sum(
            int(bits) // 8 * math.prod(int(n) for n in shape.split(",") if n)
            for bits, shape in arrays
        ),
    }


def measure(devices: int, tasks: int, rounds: int) -> dict[str, Any]:
    problem = problems.omniglot(tasks=tasks)
    mesh = metajax.task_mesh(devices) if devices > 1 else None
    update, arguments = problems.update(problem, mesh=mesh)
    case, program, _ = timing.compiled(update, *arguments)
    return {
        "devices": devices,
        "tasks": tasks,
        **all_reduces(program),
        **timing.race({"update": case}, rounds)["update"],
    }


def child(cores: int, devices: int, tasks: int, rounds: int) -> dict[str, Any]:
    """Measures in a process that may use `cores` cores and shows `devices` devices."""
    code = (
        f"import os, json, jax; os.sched_setaffinity(0, range({cores}));"
        f"jax.config.update('jax_num_cpu_devices', {devices});"
        "from benchmarks import scaling;"
        f"print(json.dumps(scaling.measure({devices}, {tasks}, {rounds})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    return {"cores": cores, **json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=0, help="0: all cores or accelerators")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    rounds = arguments.rounds
    if jax.default_backend() == "cpu":
        count = arguments.devices or num_cores()
        run = lambda n, tasks: child(n, n, tasks, rounds)  # noqa: E731
    else:
        count = arguments.devices or jax.device_count()
        run = lambda n, tasks: measure(n, tasks, rounds)  # noqa: E731
    numbers = [n for n in (1, 2, 4, 8, 16) if n <= count]
    rows = [{"scaling": "strong", **run(n, TASKS)} for n in numbers]
    rows += [{"scaling": "weak", **run(n, TASKS // count * n)} for n in numbers]
    if jax.default_backend() == "cpu" and count > 1:
        rows.append({"scaling": "one device, all cores", **child(count, 1, TASKS, rounds)})
    for kind in ("strong", "weak"):
        base = next(row for row in rows if row["scaling"] == kind)
        for row in rows:
            if row["scaling"] == kind:
                ratio = base["median"] / row["median"]
                row["efficiency"] = ratio / row["devices"] if kind == "strong" else ratio
    timing.write("scaling", rows, rounds=rounds)


if __name__ == "__main__":
    main()
