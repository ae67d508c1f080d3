"""The peak of memory in a meta-gradient, beside that of the peers, each in a process of its own.

Command: python -m benchmarks.memory [--cases NAME ...] [--orders N ...]

On Linux. Every process computes the meta-gradient twice, and then once more: what it holds at most
during that call is compared with what it holds before. That is what a library needs beyond
parameters, data, compiled programs and its own code.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

import metajax
from benchmarks import problems, timing
from benchmarks.meta_gradient import CASES, ENGINES
from metajax.machine import largest_divisor, num_cores

OURS = {
    order: {
        **dict.fromkeys(engines, 1),
        **{f"{name}, {num_cores()} devices": num_cores() for name in engines},
    }
    for order, engines in ENGINES.items()
}
PEERS = ("PyTorch loop", "torch.func", "torch.func + torch.compile", "higher", "TorchOpt")
PROCESS = Path("/proc/self")


def libraries(order: int) -> list[str]:
    """Ours, with the engines and devices of the races, and the peers that know the order."""
    return [*OURS[order], *(each for each in PEERS if order == 2 or each != "TorchOpt")]


def make(name: str, order: int, library: str) -> tuple[timing.Case, dict[str, Any]]:
    """The meta-gradient of a library, and what its compiler says."""
    problem = CASES[name]
    if library not in OURS[order]:
        from benchmarks import torch_peers

        return torch_peers.peers(order)[library](problem), {}
    if (count := OURS[order][library]) > 1:
        jax.config.update("jax_num_cpu_devices", count)
        count = largest_divisor(problem.tasks, count)
    engine = ENGINES[order][library.removesuffix(f", {num_cores()} devices")]
    mesh = metajax.task_mesh(count) if count > 1 else None
    update, arguments = problems.update(problem, meta_gradient=engine(), mesh=mesh)
    case, program, _ = timing.compiled(update, *arguments)
    return case, {"temporary_bytes": count * timing.temporary_bytes(program)}


def peak(name: str, order: int, library: str) -> dict[str, Any]:
    """The bytes that a call needs at most, beyond what this process held before it."""
    case, details = make(name, order, library)
    for _ in range(2):
        case()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free would be taken again unseen
    (PROCESS / "clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    case()
    return {"peak_bytes": _status("VmHWM") - before, "held_bytes": before, **details}


def _status(entry: str) -> int:
    lines = (PROCESS / "status").read_text().splitlines()
    return int(dict(line.split(":") for line in lines)[entry].split()[0]) * 1024


def child(*arguments: Any) -> dict[str, Any]:
    """`peak` in a process of its own."""
    code = (
        "import json, sys; from benchmarks import memory; name, order, library = sys.argv[1:];"
        "print(json.dumps(memory.peak(name, int(order), library)))"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:  # its message names paths
        return {"failed": done.stderr.strip().splitlines()[-1].split(":")[0]}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*problems.CASES])
    parser.add_argument("--orders", nargs="+", type=int, choices=(2, 1), default=[2, 1])
    arguments = parser.parse_args()
    for name, order in itertools.product(arguments.cases, arguments.orders):
        rows = [
            {"case": name, "order": order, "library": each, **child(name, order, each)}
            for each in libraries(order)
        ]
        timing.write(
            "memory",
            rows,
            key=lambda row: (row["case"], row["order"]),
            peers=timing.peer_versions(),
        )


if __name__ == "__main__":
    main()
