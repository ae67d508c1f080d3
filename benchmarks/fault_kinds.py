"""What is done to a run, and when: the faults of `python -m benchmarks.faults`."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

LIMIT_SECONDS = 3600.0  # what takes longer hangs, also on a busy machine
STOPPED_SECONDS = 60.0
CLOCK = "clock"
CACHE = "JAX_COMPILATION_CACHE_DIR"
CPU = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
DISK = "disk"  # the small file system that the working directories are on


class Fault(NamedTuple):
    """One fault.

    Attributes:
      number: its place in the campaign.
      experiment: the launcher.
      processes: how many processes share the run.
      kind: one of `KINDS`.
      moment: one of `MOMENTS`.
      delay: from the beginning of the moment, a share of `MOMENTS[moment].seconds`.
      choice: which process, file or bit.
    """

    number: int
    experiment: str
    processes: int
    kind: str
    moment: str
    delay: float
    choice: int


class Job:
    """The processes of one command, whose output goes to files."""

    def __init__(self, command: Sequence[str], workdir: Path, processes: int, cache: Path):
        self.workdir, self.scratch = workdir, workdir.parents[1]
        self.outputs = [
            self.scratch / f"output-{time.monotonic_ns()}-{i}" for i in range(processes)
        ]
        words = [*command, f"--workdir={workdir}"]
        if processes > 1:
            with socket.socket() as free:
                free.bind(("localhost", 0))
                port = free.getsockname()[1]
            words += [f"--coordinator_address=localhost:{port}", f"--num_processes={processes}"]
        self.processes = []
        for process, output in enumerate(self.outputs):
            own = [f"--process_id={process}"] if processes > 1 else []
            with output.open("w") as file:
                started = subprocess.Popen(
                    [sys.executable, *words, *own],
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **CPU, **clock(self.scratch), CACHE: str(cache)},
                )
            self.processes.append(started)

    def signal(self, number: int, processes: Sequence[int] | None = None) -> None:
        for i in range(len(self.processes)) if processes is None else processes:
            self.processes[i].send_signal(number)

    def running(self) -> bool:
        return all(process.poll() is None for process in self.processes)

    def wait(self) -> list[int]:
        """The exit statuses."""
        deadline = time.monotonic() + LIMIT_SECONDS
        try:
            return [p.wait(max(0.0, deadline - time.monotonic())) for p in self.processes]
        finally:
            self.signal(signal.SIGKILL)
            for process in self.processes:
                process.wait()

    def text(self) -> str:
        return "".join(path.read_text(errors="replace") for path in self.outputs)

    def first_text(self) -> str:
        return self.outputs[0].read_text(errors="replace")

    def metrics(self) -> list[str]:
        path = self.workdir / "metrics.jsonl"
        return path.read_text(errors="replace").splitlines() if path.exists() else []

    def checkpoints(self) -> list[str]:
        path = self.workdir / "checkpoints"
        return os.listdir(path) if path.exists() else []


# Moments --------------------------------------------------------------------------------------


class Moment(NamedTuple):
    """A part of a run.

    Attributes:
      begun: whether it has begun; the number tells which of several such parts is meant.
      seconds: how long after that a fault comes, at most.
    """

    begun: Callable[[Job, int], bool]
    seconds: float


MOMENTS = {
    "start": Moment(lambda job, choice: True, 8.0),
    "compilation": Moment(lambda job, choice: "workdir: " in job.first_text(), 6.0),
    "step": Moment(lambda job, choice: len(job.metrics()) > 1 + choice % 6, 0.2),
    "validation": Moment(
        lambda job, choice: sum("train/" in line for line in job.metrics()) >= 2 * (1 + choice % 3),
        0.05,
    ),
    "checkpointing": Moment(
        lambda job, choice: (
            len(job.metrics()) > choice % 7 and any("tmp" in name for name in job.checkpoints())
        ),
        0.1,
    ),
    "evaluation": Moment(lambda job, choice: "\nevaluating" in job.first_text(), 4.0),
}


def reach(job: Job, fault: Fault) -> bool:
    """Waits for the moment of a fault; `False` if the run has ended before."""
    moment, begun = MOMENTS[fault.moment], time.monotonic()
    while not moment.begun(job, fault.choice):
        if not job.running() or time.monotonic() > begun + LIMIT_SECONDS:
            return False
        time.sleep(0.001)
    time.sleep(fault.delay * moment.seconds)
    return job.running()


# Kinds ----------------------------------------------------------------------------------------

Start = Callable[[], Job]
# The exit statuses of the processes of each command, that of the run itself last.
Kind = Callable[[Job, Fault, Start], list[list[int]]]


def kill(job: Job, fault: Fault, start: Start) -> list[list[int]]:
    job.signal(signal.SIGKILL)
    return [job.wait()]


def terminate(job: Job, fault: Fault, start: Start) -> list[list[int]]:
    """As a scheduler does before it takes the machine away: to any one process."""
    job.signal(signal.SIGTERM, [fault.choice % fault.processes])
    return [job.wait()]


def stop(job: Job, fault: Fault, start: Start) -> list[list[int]]:
    """One process does nothing for a minute, after which others take it for lost."""
    stopped = [fault.choice % fault.processes]
    job.signal(signal.SIGSTOP, stopped)
    time.sleep(STOPPED_SECONDS)
    job.signal(signal.SIGCONT, stopped)
    return [job.wait()]


def lose(job: Job, fault: Fault, start: Start) -> list[list[int]]:
    job.signal(signal.SIGKILL, [fault.choice % fault.processes])
    return [job.wait()]


def fill(job: Job, fault: Fault, start: Start) -> list[list[int]]:
    """Fills the disk until the run ends."""
    filler = job.scratch / DISK / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    statuses = job.wait()
    filler.unlink()
    return [statuses]


def damage(job: Job, fault: Fault, start: Start) -> list[list[int]]:
    """Cuts off or changes a file of a checkpoint, once the run is killed."""
    statuses = kill(job, fault, start)
    files = [
        path
        for folder in (job.workdir / "checkpoints").iterdir()
        if folder.name.isdigit()  # or else it is one that was not completed
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.stat().st_size
    ]
    rng = random.Random(fault.choice)
    path = rng.choice(files)
    data = bytearray(path.read_bytes())
    if fault.kind == "truncated file":
        data = data[: rng.randrange(len(data))]
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return statuses


def protect(job: Job, fault: Fault, start: Start) -> list[list[int]]:
    """The file system can only be read while the command is repeated."""
    statuses = kill(job, fault, start)
    disk = job.scratch / DISK
    with remounted(disk, "ro"):
        return [*statuses, start().wait()]


def turn_back(job: Job, fault: Fault, start: Start) -> list[list[int]]:
    """Sets the clock back by a day."""
    (job.scratch / CLOCK).write_text("-1d")
    return [job.wait()]


def start_again(job: Job, fault: Fault, start: Start) -> list[list[int]]:
    """The same command while it runs: refused, and the run goes on."""
    return [start().wait(), job.wait()]


KINDS: dict[str, Kind] = {
    "SIGKILL": kill,
    "SIGTERM": terminate,
    "SIGSTOP": stop,
    "lost process": lose,
    "full disk": fill,
    "truncated file": damage,
    "flipped bit": damage,
    "read-only workdir": protect,
    "clock set back": turn_back,
    "second start": start_again,
}
# How often a kind is drawn, in comparison: what happens most in a cluster, and takes no minute.
WEIGHTS = {"SIGKILL": 5, "SIGTERM": 5, "SIGSTOP": 1}


# The machine ----------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(scratch: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own, in memory; root may make one."""
    disk = scratch / DISK
    disk.mkdir(parents=True)
    options = f"size={megabytes}m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def remounted(disk: Path, mode: str) -> Iterator[None]:
    subprocess.run(["mount", "-o", f"remount,{mode}", disk], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)


def clock(scratch: Path) -> dict[str, str]:
    """The environment in which libfaketime reads the clock's shift from a file."""
    path = scratch / CLOCK
    if not path.exists():
        return {}
    (library,) = list(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(path),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
