"""Timing on noisy machines: cases take turns, and medians and ratios are recorded."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.results_folder import RESULTS, named
from metajax import train

Case = Callable[[], Any]
# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory, for all libraries of the process.

    Otherwise it returns large buffers to the system after a call, and the next call maps them again
    page by page. On a virtual machine that can take longer than the computation. A training loop
    does many updates per call, so it does not pay for that at every update.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def race(cases: Mapping[str, Case], rounds: int = 9) -> dict[str, dict[str, float]]:
    """Runs every case once to warm up, then all of them in turn, `rounds` times.

    Freed memory is kept from then on, see `keep_freed_memory`.

    Returns:
      For each case the `median` and the `fastest` of its wall times in seconds.
    """
    keep_freed_memory()
    for case in cases.values():
        case()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            seconds[name].append(time.perf_counter() - start)
    return {
        name: {"median": statistics.median(times), "fastest": min(times)}
        for name, times in seconds.items()
    }


def compiled(fn: Callable[..., Any], *args: Any) -> tuple[Case, jax.stages.Compiled, float]:
    """Compiles ahead of time; returns the blocking call, the program and the seconds it took."""
    train.provenance()  # at import: a later commit must not be recorded
    start = time.perf_counter()
    program = jax.jit(fn).lower(*args).compile()
    seconds = time.perf_counter() - start
    args = jax.device_put(args, program.input_shardings[0])
    return lambda: jax.block_until_ready(program(*args)), program, seconds


def successive(fn: Callable[[Any], tuple[Any, Any]], state: Any) -> Case:
    """A blocking call of `state -> (state, result)` that continues from the last state."""
    _, program, _ = compiled(fn, state)
    (sharding,) = program.input_shardings[0]

    def call() -> Any:
        nonlocal state
        state, result = jax.block_until_ready(program(jax.device_put(state, sharding)))
        return result

    return call


def temporary_bytes(program: jax.stages.Compiled) -> int:
    analysis = program.memory_analysis()
    return analysis.temp_size_in_bytes if analysis else 0


def matmul_case(size: int = 4096) -> tuple[Case, float]:
    """A square float32 product, as a measure of the hardware, and its number of operations.

    The precision is JAX's default, as in the networks: accelerators round the factors to fewer
    bits. They compute many products in a row, so that the time to start them does not count.
    """
    products = 1 if jax.default_backend() == "cpu" else 50
    matrix = jnp.full((size, size), 1 / size, jnp.float32)

    def multiply(matrix: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, products, lambda _, x: x @ matrix, matrix)

    case, _, _ = compiled(multiply, matrix)
    return case, 2.0 * size**3 * products


def peer_versions(*packages: str) -> dict[str, str]:
    """The versions of the installed libraries that are compared."""
    found = {}
    for package in packages or ("torch", "higher", "torchopt"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def write(
    name: str,
    cases: Sequence[Mapping[str, Any]],
    *,
    key: Callable[[Mapping[str, Any]], Any] | None = None,
    **common: Any,
) -> Path:
    """Writes `benchmarks/results/NAME[_gpu].jsonl`: a line for each case, with its provenance.

    The file is one of this platform, see `benchmarks.results_folder.named`.

    With a `key` of lines, those that are there already stay if no new one has theirs, in its order.
    """
    path = RESULTS / f"{named(name, jax.default_backend())}.jsonl"
    RESULTS.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]])
    provenance = {"command": command, **train.provenance()}
    rows = [{"benchmark": name, **case, **common, **provenance} for case in cases]
    if key and path.exists():
        new = set(map(key, rows))
        old = map(json.loads, path.read_text().splitlines())
        rows = sorted([*rows, *(row for row in old if key(row) not in new)], key=key)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for case in cases:
        print(json.dumps(case), flush=True)
    return path
