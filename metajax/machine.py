"""The machine that computations run on: limits tuned to it, and the sizes read from it."""

from __future__ import annotations

import functools
from pathlib import Path

# Parameters and data of a chunk of tasks, and the number of these, up to which one `vmap` on a CPU
# is within some fifth of the fastest: read off the rows of `chunk` in `benchmarks/growth.py`.
CPU_CHUNK_BYTES = 256 * 1024
CPU_CHUNK_TASKS = 8

# Limits of convolutions on a CPU. Races of whole meta-updates chose them; for a single layer, as in
# `python -m benchmarks.convolution`, others may be faster.

# Patches of so many bytes are multiplied at a time: the caches of one core hold them.
CPU_PATCH_BYTES = 2 * 1024 * 1024
# The patches of a batch stay in memory for the backward pass if they fill at most this share of the
# last-level cache. The rest of a meta-update needs that cache too.
CPU_CACHE_SHARE = 1 / 32
# An output of fewer rows than this gains nothing from summing over the kernel's rows last.
CPU_MIN_ROWS = 8


@functools.cache
def last_cache_bytes(path: str = "/sys/devices/system/cpu/cpu0/cache/index3/size") -> int:
    """The size of the CPU's third-level cache, or 0 where the operating system does not tell."""
    try:
        kibibytes = Path(path).read_text().strip().removesuffix("K")
    except OSError:
        return 0
    return 1024 * int(kibibytes) if kibibytes.isdecimal() else 0
