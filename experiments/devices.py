"""The devices that share the tasks of a run, and the programs that are kept for them."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Mapping
from typing import Any

import jax

from experiments.settings import Launch, UsageError
from metajax import train
from metajax.data.cache import default_dir
from metajax.machine import largest_divisor, num_cores, processor

# Of compiled programs, of which an experiment has about 1 MB; those used least recently go.
PROGRAMS_BYTES = 2**30


def keep_programs() -> None:
    """Lets later runs find what is compiled, in the user's cache, unless JAX is told where to."""
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    # Programs for a CPU are for the instructions of its model.
    model = hashlib.sha256(processor().encode()).hexdigest()[:8]
    with contextlib.suppress(OSError, RuntimeError):  # no home, or one that is read-only
        folder = default_dir("programs") / model
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_compilation_cache_max_size", PROGRAMS_BYTES)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def share(settings: Any, launch: Launch) -> int:
    """The number of devices that share the tasks; a CPU is divided into as many.

    Raises:
      UsageError: for devices that are not there or cannot share the tasks equally.
    """
    serial = getattr(settings, "carry", None) == "serial"
    shared = shared_tasks(settings, launch.mode == "eval")
    equal = 1 if serial else math.gcd(*shared.values())
    several = jax.distributed.is_initialized()
    choose = not (several or launch.num_devices)
    cores = largest_divisor(equal, num_cores())
    if choose:
        divide_cpu(cores)
    _check_platform()
    if choose:
        most = cores if jax.default_backend() == "cpu" else jax.device_count()
        return largest_divisor(equal, min(most, jax.device_count()))
    num_devices = jax.device_count() if several else launch.num_devices
    check_shared(shared, num_devices)
    return num_devices


def shared_tasks(settings: Any, evaluates_only: bool) -> dict[str, int]:
    """The numbers of tasks that the devices share equally, by the names of the settings."""
    names = [] if evaluates_only else ["meta_batch_size"]
    names.append("eval_tasks")
    if not evaluates_only and getattr(settings, "validates", True):
        names.append("validation_tasks")
    return {name: getattr(settings, name, 0) for name in names}


def check_shared(shared: Mapping[str, int], num_devices: int) -> None:
    """Raises `UsageError` for numbers of tasks that the devices cannot share equally."""
    for name, count in shared.items():
        if count % num_devices:
            raise UsageError(
                f"--{name}={count}: {num_devices} devices cannot share so many tasks equally; make "
                f"it a multiple of {num_devices}, or change --num_devices."
            )


def divide_cpu(num_devices: int) -> None:
    # JAX refuses this once it has been used. Then `task_mesh` reports the number of devices.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", num_devices)


def _check_platform() -> None:
    """Raises `UsageError` if JAX finds no device of the platform that `JAX_PLATFORMS` names."""
    try:
        train.provenance()
    except (RuntimeError, AssertionError) as error:
        platforms = os.environ.get("JAX_PLATFORMS", "")
        raise UsageError(
            f"JAX_PLATFORMS={platforms} asks for devices that JAX does not find here: unset it, or "
            "install the plugin of that platform."
        ) from error
