"""Where the time of a meta-gradient goes, beside what the machine could do.

Command: python -m benchmarks.limits [--cases NAME ...] [--orders N ...] [--rounds=N]

For the default engine on all cores, as launchers use them: the operations and bytes of the
program, the machine's two ceilings, the rate of matrix products and that of reading and writing
memory, measured in turn with it, and the shares of its kinds of instructions in a trace.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import metajax
from benchmarks import hlo, problems, timing
from benchmarks.meta_gradient import CASES, ENGINES
from metajax.machine import largest_divisor, num_cores

TRACED = 3


def memory_case(size: int = 2**26) -> tuple[timing.Case, float]:
    """`a + s b` of arrays that no cache holds, and the bytes that it reads and writes."""
    arrays = jnp.ones(size), jnp.ones(size)
    case, _, _ = timing.compiled(lambda a, b: a + 3.0 * b, *arrays)
    return case, 3.0 * 4 * size


def traced(case: timing.Case, program: hlo.Program) -> dict[str, float]:
    """Seconds of a call in each kind of instruction, summed over the devices."""
    kinds = hlo.kinds(program)
    found: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(TRACED):
                case()
        (path,) = Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(path)).planes
        for line in itertools.chain.from_iterable(plane.lines for plane in planes):
            for event in line.events:
                name = dict(event.stats).get("hlo_op")
                if name in kinds and event.name == name:  # not the mark of its end
                    found[kinds[name]] += event.duration_ns / 1e9 / TRACED
    return dict(found)


def measure(name: str, order: int, rounds: int) -> dict[str, Any]:
    problem = CASES[name]
    devices = largest_divisor(problem.tasks, jax.device_count())
    mesh = metajax.task_mesh(devices) if devices > 1 else None
    update, arguments = problems.update(
        problem, meta_gradient=ENGINES[order]["metajax"](), mesh=mesh
    )
    case, compiled, _ = timing.compiled(update, *arguments)
    program = hlo.parse(compiled.as_text() or "")
    multiply, flops = timing.matmul_case()
    add, moved = memory_case()
    times = timing.race({"update": case, "matmul": multiply}, rounds)
    times |= timing.race({"memory": add}, rounds)  # by itself: it leaves the caches full
    seconds = times["update"]["median"]
    matmul_rate = flops / times["matmul"]["median"]
    memory_rate = moved / times["memory"]["median"]
    useful = problems.useful_flops(problem, order)
    # The text is that of one device.
    moved_bytes = devices * hlo.moved_bytes(program)
    return {
        "case": name,
        "order": order,
        "devices": devices,
        **times["update"],
        "useful_gflop": useful / 1e9,
        "product_gflop": devices * problems.product_flops(update, *arguments) / 1e9,
        "moved_gigabytes": moved_bytes / 1e9,
        "instructions": devices * sum(times for _, times in hlo.executed(program)),
        "matmul_gflop_per_second": matmul_rate / 1e9,
        "memory_gigabytes_per_second": memory_rate / 1e9,
        "share_of_matmul_rate": useful / matmul_rate / seconds,
        "share_of_memory_rate": moved_bytes / memory_rate / seconds,
        "traced_seconds": traced(case, program),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--orders", nargs="+", type=int, choices=(2, 1), default=[2, 1])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", num_cores())  # accelerators are as many as there are
    for name, order in itertools.product(arguments.cases, arguments.orders):
        timing.write(
            "limits",
            [measure(name, order, arguments.rounds)],
            key=lambda row: (row["case"], row["order"], row["device"]["kind"]),
            rounds=arguments.rounds,
        )


if __name__ == "__main__":
    main()
