"""The machine that runs the computations: limits tuned for CPUs, its cores and its cache."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

# Limits on a chunk of tasks, by its parameters and data and by its number of tasks. Up to them one
# `vmap` on a CPU takes at most about a fifth more time than the fastest chunk. Source: the `chunk`
# rows of `benchmarks/growth.py`.
CPU_CHUNK_BYTES = 256 * 1024
CPU_CHUNK_TASKS = 8

# Limits for convolutions on a CPU, chosen by timing whole meta-updates. For a single layer, as in
# `python -m benchmarks.convolution`, other values may be faster.

# The size of the patches that are multiplied at a time. The caches of one core hold them.
CPU_PATCH_BYTES = 2 * 1024 * 1024
# The patches of a batch stay in memory for the backward pass if they fill at most this share of the
# last-level cache. The rest of a meta-update needs that cache too.
CPU_CACHE_SHARE = 1 / 32
# With fewer output rows than this, summing over the kernel's rows last gains nothing.
CPU_MIN_ROWS = 8


def num_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The name of the CPU's model, or an empty one if it is unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def largest_divisor(count: int, most: int) -> int:
    """The largest divisor of `count` up to `most`."""
    return next(number for number in range(most, 0, -1) if count % number == 0)


def equal_chunk(count: int, limit: int) -> int:
    """The largest divisor of `count` up to `limit`, or `limit` if no divisor reaches half of it.

    Unequal chunks leave a remainder, which is compiled and run separately.
    """
    limit = max(min(count, limit), 1)
    equal = largest_divisor(count, limit)
    return equal if 2 * equal >= limit else limit


@functools.cache
def last_cache_bytes(path: str = "/sys/devices/system/cpu/cpu0/cache/index3/size") -> int:
    """The size of the CPU's third-level cache in bytes, or 0 if it is unknown."""
    try:
        kibibytes = Path(path).read_text().strip().removesuffix("K")
    except OSError:
        return 0
    return 1024 * int(kibibytes) if kibibytes.isdecimal() else 0
