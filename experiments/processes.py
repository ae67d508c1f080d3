"""One launcher in many processes: how they find each other, and what the others print."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax

from experiments.settings import UsageError

# Variables in which srun and mpirun give the number of processes.
COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
HEARTBEAT_SECONDS = 30
# How long finished processes wait for the first one, which draws the figures.
SHUTDOWN_SECONDS = 24 * 3600
# Words in the messages of failed collectives and barriers.
LOST = ("Gloo", "NCCL", "UNAVAILABLE", "Barrier", "heartbeat")


def start(launch: Any) -> None:
    """Joins the other processes, if there are any, before JAX is first used.

    Raises:
      UsageError: if they cannot be found.
    """
    if not launch.coordinator_address and (launch.num_processes > 1 or launch.process_id):
        raise UsageError(
            "--num_processes and --process_id need --coordinator_address; srun, mpirun, Cloud TPU "
            "and GKE need none of them."
        )
    given: dict[str, Any] = {}
    if launch.coordinator_address:
        host, _, port = launch.coordinator_address.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port) < 2**16):
            raise UsageError(
                f"--coordinator_address={launch.coordinator_address} must be HOST:PORT of process "
                "0, such as localhost:1234."
            )
        given = {
            name: getattr(launch, name)
            for name in ("coordinator_address", "num_processes", "process_id")
        }
        if launch.process_id >= launch.num_processes:
            raise UsageError(
                f"--process_id={launch.process_id} must be less than --num_processes="
                f"{launch.num_processes}: they are counted from 0."
            )
    several = any(os.environ.get(name, "1") not in ("", "1") for name in COUNTS)
    if not (given or launch.distributed or several) or jax.distributed.is_initialized():
        return
    print("waiting for the other processes", flush=True)
    try:
        jax.distributed.initialize(
            **given,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"the other processes are not found ({' '.join(str(error).split())}): start this one "
            "by srun, mpirun or on Cloud TPU, or pass --coordinator_address, --num_processes and "
            "--process_id."
        ) from error


def check(launch: Any) -> None:
    """Raises `UsageError` for a command that many processes cannot carry out together."""
    # The number of processes is known to JAX once it has been used, which fixes its devices.
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return
    if launch.workdir is None or launch.mode == "eval":
        raise UsageError(
            "many processes need --workdir, a directory that all of them see, and --mode=train: "
            "one process is enough to evaluate a run."
        )
    if launch.num_devices not in (0, jax.local_device_count()):
        raise UsageError(
            f"--num_devices={launch.num_devices}: each process has {jax.local_device_count()} "
            "devices, and uses all of them; leave out --num_devices."
        )


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Only the first process prints."""
    with contextlib.ExitStack() as stack:
        if jax.process_index():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        yield


def end_if_lost(error: Exception) -> None:
    """Exits if an error of JAX shows that another process died."""
    if jax.process_count() == 1 or not any(word in str(error) for word in LOST):
        return
    print(
        f"error: process {jax.process_index()} cannot go on without another one, which is gone "
        f"({str(error).splitlines()[0]:.160}): repeat the command in all processes, to continue "
        "from the last checkpoint.",
        file=sys.stderr,
        flush=True,
    )
    # Meanwhile the coordinator finds out which process it is, says so, and ends the others, which
    # absl would follow up by a stack of each thread.
    faulthandler.disable()
    time.sleep(HEARTBEAT_SECONDS + 15)
    os._exit(1)
