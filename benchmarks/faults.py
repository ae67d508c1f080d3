"""A campaign of faults: each disturbs a run, whose command is then repeated until it ends.

Command: python -m benchmarks.faults [--faults=N] [--seed=N] [--only=KIND] [--scratch=DIR]

Faults are drawn by seed: the experiment, one process or two, what happens, and when (`MOMENTS`).
After each, all arrays of the last checkpoint, the evaluation and `metrics.jsonl` are compared with
those of an undisturbed run of as many processes, and what the commands wrote is searched for
tracebacks. `benchmarks/results/faults.jsonl` gets one line a fault; a repeated command goes on with
the faults that are not there yet. Needs Linux, root (for a small file system) and libfaketime.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.fault_kinds import (
    CLOCK,
    DISK,
    KINDS,
    MOMENTS,
    WEIGHTS,
    Fault,
    Job,
    reach,
    small_disk,
)
from benchmarks.results_folder import RESULTS
from benchmarks.resume import arrays
from metajax import train

RECORD = "faults.jsonl"
# Seconds each, with compiled programs at hand: most of it is Python.
SMALL = [
    "--num_meta_steps=12",
    "--meta_batch_size=2",
    "--steps_per_call=2",
    "--validate_every=4",
    "--checkpoint_every=2",
    "--eval_tasks=4",
    "--num_eval_steps=1",
    "--validation_steps=1",
]
EXPERIMENTS: dict[str, list[str]] = {
    "sinusoid": [],
    "omniglot": ["--network=mlp", "--validation_tasks=4"],
    "navigation": ["--trajectories=4", "--eval_trajectories=4", "--validation_tasks=4"],
}
ATTEMPTS = 5  # to inflict a fault before a run has ended, and to end a run after it
DISK_MEGABYTES = 64
# Damage to checkpoints, of which there are none before.
AFTER_CHECKPOINTS = ("step", "validation", "evaluation")


class Outcome(NamedTuple):
    """What a run has left behind.

    Attributes:
      arrays: those of the last checkpoint.
      lines: of `metrics.jsonl`, without the seconds.
      evaluation: the entry of `result.json`.
    """

    arrays: dict[str, np.ndarray]
    lines: list[str]
    evaluation: Any


def draw(number: int, seed: int) -> Fault:
    """The fault of a number: any is drawn without those before it."""
    rng = random.Random(f"{seed}/{number}")
    (kind,) = rng.choices(list(KINDS), [WEIGHTS.get(kind, 2) for kind in KINDS])
    damages = kind in ("truncated file", "flipped bit")
    return Fault(
        number,
        rng.choices(list(EXPERIMENTS), [2, 2, 1])[0],  # the last takes three times as long
        2 if kind == "lost process" else rng.choice([1, 1, 1, 2]),  # where one of two compiles anew
        kind,
        rng.choice(AFTER_CHECKPOINTS if damages else list(MOMENTS)),
        rng.random(),
        rng.randrange(2**31),
    )


def command(experiment: str) -> list[str]:
    return ["-m", f"experiments.{experiment}", *SMALL, *EXPERIMENTS[experiment]]


def outcome(workdir: Path) -> Outcome:
    lines = [json.dumps({**line, "seconds": 0}) for line in train.read_metrics(workdir)]
    return Outcome(arrays(workdir), lines, train.read_json(workdir / "result.json")["evaluation"])


def undisturbed(experiment: str, processes: int, scratch: Path, cache: Path) -> Outcome:
    """Runs without faults, which also fills the compilation cache."""
    workdir = scratch / DISK / "undisturbed"
    job = Job(command(experiment), workdir, processes, cache)
    if any(job.wait()):
        sys.exit(f"the undisturbed run failed:\n{job.text()}")
    found = outcome(workdir)
    shutil.rmtree(workdir)
    return found


def suffer(fault: Fault, wanted: Outcome, scratch: Path, cache: Path) -> dict[str, Any]:
    """Inflicts one fault, repeats the command until it ends, and compares."""
    begun = time.perf_counter()
    jobs: list[Job] = []
    (scratch / CLOCK).unlink(missing_ok=True)
    if fault.kind == "clock set back":
        (scratch / CLOCK).write_text("+0")
    workdir = scratch / DISK / "run"

    def start() -> Job:
        # Runs killed while compiling start with an empty cache; the others reuse it.
        own = scratch / "empty" if fault.moment == "compilation" and not jobs else cache
        jobs.append(Job(command(fault.experiment), workdir, fault.processes, own))
        return jobs[-1]

    for attempt in range(ATTEMPTS):
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.rmtree(scratch / "empty", ignore_errors=True)
        jobs.clear()
        if reach(start(), fault._replace(delay=fault.delay / (1 + attempt))):
            break
        jobs[0].wait()
    else:
        raise RuntimeError(f"{fault} comes too late: the run has ended.")
    seen = jobs[0].metrics()
    statuses = KINDS[fault.kind](jobs[0], fault, start)
    refused = True
    if fault.kind == "second start" and not all(statuses[0]):
        # One that comes when the run has ended finds its result, and trains nothing.
        refused = not any(line.startswith("step ") for line in jobs[1].text().splitlines())
    for _ in range(ATTEMPTS):
        if any(statuses[-1]):
            statuses.append(start().wait())
    texts = [job.text() for job in jobs]
    found = {
        **fault._asdict(),
        "lines_before": len(seen),
        "statuses": statuses,
        "ended": not any(statuses[-1]),
        "refused": refused,
        "tracebacks": sum(text.count("Traceback (most recent") for text in texts),
        "errors": [
            line.replace(str(scratch), "SCRATCH")
            for text in texts
            for line in text.splitlines()
            if line.startswith("error")
        ],
        "seconds": time.perf_counter() - begun,
    }
    if found["ended"]:
        found |= compare(wanted, outcome(workdir))
    if not passed(found):
        kept = scratch.parent / f"failed-{fault.number}"
        shutil.copytree(workdir, kept, dirs_exist_ok=True)
        for i, text in enumerate(texts):
            (kept / f"output-{i}").write_text(text)
    for job in jobs:
        for path in job.outputs:
            path.unlink()
    return found


def compare(wanted: Outcome, found: Outcome) -> dict[str, Any]:
    names = wanted.arrays.keys() | found.arrays.keys()
    differing = [
        name
        for name in sorted(names)
        if name not in wanted.arrays
        or name not in found.arrays
        or wanted.arrays[name].tobytes() != found.arrays[name].tobytes()
    ]
    there, here = collections.Counter(wanted.lines), collections.Counter(found.lines)
    return {
        "arrays": len(names),
        "values": int(sum(array.size for array in wanted.arrays.values())),
        "differing_arrays": differing,
        "lines": len(wanted.lines),
        "lost_lines": (there - here).total(),
        "other_lines": (here - there).total(),
        "ordered": wanted.lines == found.lines,
        "evaluation_equal": json.dumps(wanted.evaluation) == json.dumps(found.evaluation),
    }


def passed(row: dict[str, Any]) -> bool:
    """Whether a fault has left no trace."""
    return (
        row["ended"]
        and row["refused"]
        and not row["tracebacks"]
        and not row["differing_arrays"]
        and row["ordered"]
        and row["evaluation_equal"]
    )


def summary(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A table: one line a kind, and the sum."""
    heads = ("fault", "number", "without a trace", "differing arrays", "lines", "tracebacks")
    table: list[tuple[str, ...]] = [heads]
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
    for kind in [*kinds, "all"]:
        own = [row for row in rows if kind in ("all", row["kind"])]
        table.append(
            (
                kind,
                str(len(own)),
                str(sum(map(passed, own))),
                str(sum(len(row.get("differing_arrays", ())) for row in own)),
                str(sum(row.get("lost_lines", 0) + row.get("other_lines", 0) for row in own)),
                str(sum(row["tracebacks"] for row in own)),
            )
        )
    return table


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=KINDS, help="faults of one kind alone")
    parser.add_argument("--record", type=Path, default=RESULTS / RECORD)
    parser.add_argument("--scratch", type=Path, help="where the runs are, and those that fail stay")
    arguments = parser.parse_args()
    base = arguments.scratch or Path(tempfile.mkdtemp())
    cache = base / "cache"
    done = {(row["seed"], row["number"]) for row in read(arguments.record)}
    line = f"python -m benchmarks.faults --faults={arguments.faults} --seed={arguments.seed}"
    wanted: dict[tuple[str, int], Outcome] = {}
    with small_disk(base / "scratch", DISK_MEGABYTES):
        for number in range(arguments.faults):
            fault = draw(number, arguments.seed)
            if (arguments.seed, number) in done or arguments.only not in (None, fault.kind):
                continue
            case = fault.experiment, fault.processes
            if case not in wanted:
                wanted[case] = undisturbed(*case, base / "scratch", cache)
            row = suffer(fault, wanted[case], base / "scratch", cache)
            print(json.dumps(row), flush=True)
            row = {
                "benchmark": "faults",
                "seed": arguments.seed,
                **row,
                "command": line,
                **train.provenance(),
            }
            with arguments.record.open("a") as file:
                file.write(json.dumps(row) + "\n")
    for cells in summary(read(arguments.record)):
        print("  ".join(f"{cell:17}" for cell in cells))


if __name__ == "__main__":
    main()
