"""The time to the first result: tracing, compiling and running every case once.

Command: python -m benchmarks.compile_time

Each case is built anew in this process, with JAX's persistent cache off.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax

import metajax
from benchmarks import problems, timing
from benchmarks.growth import sinusoid
from metajax import train

ENGINES = {
    "second_order": metajax.second_order,
    "mixed_mode": metajax.mixed_mode,
    "first_order": metajax.first_order,
}


def measure(update: Any, arguments: tuple[Any, ...]) -> dict[str, float]:
    start = time.perf_counter()
    lowered = jax.jit(update).lower(*arguments)
    traced = time.perf_counter()
    program = lowered.compile()
    compiled = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    ended = time.perf_counter()
    return {
        "trace_seconds": traced - start,
        "compile_seconds": compiled - traced,
        "run_seconds": ended - compiled,
        "first_result_seconds": ended - start,
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    train.provenance()
    rows = [{"case": "sinusoid", "engine": "second_order", **measure(*sinusoid())}]
    for name, problem in problems.CASES.items():
        for label, engine in ENGINES.items():
            built = problems.update(problem, meta_gradient=engine())
            rows.append({"case": name, "engine": label, **measure(*built)})
    timing.write("compile_time", rows)


if __name__ == "__main__":
    main()
