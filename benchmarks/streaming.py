"""Meta-steps a second with images on disk, ten times the memory, against images in memory.

Command: python -m benchmarks.streaming [--gigabytes=N] [--rounds=N] [--folder=FOLDER]

As root on Linux, for the limit of the memory. A file of random images, as many as
tieredImageNet's training set has, is mapped by a process that may use a tenth of its size, the
pages that the system keeps of the file included. It trains by `train.fit` from that file and from
a few images in memory, in turn: the ratio is how much of its time the device works.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import metajax
from benchmarks import problems, timing
from metajax import train
from metajax.tasks import FewShot, StreamedFewShot

GROUPS = Path("/sys/fs/cgroup")


class Setup(NamedTuple):
    """A problem, and how long it is timed.

    Attributes:
      problem: its tasks and network.
      calls: timed calls of the compiled program.
      steps: meta-steps of each.
    """

    problem: problems.Problem
    calls: int
    steps: int


CASES = {
    "mini-imagenet, 15 queries, 5 steps": Setup(problems.mini_imagenet(), 4, 10),
    # One inner step and no gradient through it: the least work for an image.
    "84 x 84, 15 queries, 1 step": Setup(problems.mini_imagenet(num_steps=1), 6, 10),
}


@contextlib.contextmanager
def limited(limit: int) -> Iterator[Path]:
    """A control group of Linux whose processes may use `limit` bytes; the file to enter it by.

    Raises:
      PermissionError: without the right to make one.
      FileNotFoundError: if the system has none for memory.
    """
    first = (GROUPS / "memory").is_dir()  # version 1 has a folder for each resource
    group = (GROUPS / "memory" if first else GROUPS) / f"metajax-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit))
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def write_images(path: Path, size: int) -> tuple[int, ...]:
    """Writes random images of 84 x 84, about `size` bytes, and returns their shape.

    The pages of the file leave the memory.
    """
    one = 84 * 84 * 3
    examples = 1300
    shape = (size // (one * examples), examples, 84, 84, 3)
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for _ in range(shape[0]):
            file.write(rng.bytes(one * examples))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return shape


def seconds_per_step(setup: Setup, tasks: Any) -> float:
    """Seconds of a meta-step of first-order MAML in `fit`, after the first call, which compiles."""
    problem = setup.problem
    learner = metajax.fomaml(
        problems.make_loss(problem.model.apply),
        optax.sgd(problem.learning_rate),
        optax.adam(1e-3),
        num_steps=problem.num_steps,
    )
    with tempfile.TemporaryDirectory() as folder:
        train.fit(
            learner,
            problems.parameters(problem),
            tasks,
            key=jax.random.key(0),
            num_meta_steps=(1 + setup.calls) * setup.steps,
            meta_batch_size=problem.tasks,
            steps_per_call=setup.steps,
            workdir=folder,
            config={},
            show_progress=False,
        )
        seconds = [line["seconds"] for line in train.read_metrics(folder)]
    return statistics.median(b - a for a, b in itertools.pairwise(seconds)) / setup.steps


def work(path: Path, shape: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """Times all cases from memory and from the file, in turn."""
    jax.config.update("jax_compilation_cache_dir", str(path.parent / "programs"))
    mapped = np.memmap(path, np.uint8, "r", shape=shape)
    few = np.random.default_rng(1).integers(0, 256, (20, 40, *shape[2:]), np.uint8)
    rows = []
    for name, setup in CASES.items():
        sizes = {each: getattr(setup.problem, each) for each in ("ways", "shots", "queries")}
        found: dict[str, list[float]] = {"memory": [], "disk": []}
        read = 0
        for _ in range(rounds):
            found["memory"].append(seconds_per_step(setup, FewShot(few, **sizes)))
            before = read_bytes()
            found["disk"].append(seconds_per_step(setup, StreamedFewShot(mapped, **sizes)))
            read += read_bytes() - before
        seconds = {where: statistics.median(each) for where, each in found.items()}
        rows.append(
            {
                "case": name,
                "seconds_memory": seconds["memory"],
                "seconds_disk": seconds["disk"],
                "busy": seconds["memory"] / seconds["disk"],
                "rounds_busy": [a / b for a, b in zip(*found.values(), strict=True)],
                "read_bytes_per_step": read / (rounds * (1 + setup.calls) * setup.steps),
                "resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    return rows


def read_bytes() -> int:
    """What this process has read from disks so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


def child(path: Path, shape: tuple[int, ...], rounds: int, limit: int) -> list[dict[str, Any]]:
    """`work` in a process with a limit of its memory."""
    code = (
        "import json, os, pathlib, sys; group, path, shape, rounds = sys.argv[1:];"
        "pathlib.Path(group).write_text(str(os.getpid()));"
        "from benchmarks import streaming;"
        "rows = streaming.work(pathlib.Path(path), tuple(json.loads(shape)), int(rounds));"
        "print(json.dumps(rows))"
    )
    with limited(limit) as group:
        done = subprocess.run(
            [sys.executable, "-c", code, str(group), str(path), json.dumps(shape), str(rounds)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=16.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the images are written; on a disk, not in memory")
    arguments = parser.parse_args()
    size = int(arguments.gigabytes * 1e9)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "images"
        shape = write_images(path, size)
        rows = child(path, shape, arguments.rounds, size // 10)
    common = {"image_bytes": int(np.prod(shape)), "limit_bytes": size // 10}
    timing.write("streaming", [{**row, **common} for row in rows], rounds=arguments.rounds)


if __name__ == "__main__":
    main()
