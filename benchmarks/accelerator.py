"""Runs the benchmarks for a GPU by priority, within a budget of seconds.

Commands:

    python -m benchmarks.accelerator [--budget=540] [--out=FOLDER] [--only NAME ...] [--pack=FOLDER]
    python -m benchmarks.accelerator --prepare=FOLDER
    python -m benchmarks.accelerator --rehearse

The first skips what is recorded for this device, continues what was begun in `runs/`, and leaves
in `--out` at most eight files of at most 16 MiB: new records, the runs to go on from, a log. The
second packs what a machine without a network lacks, in parts that travel one at a time: wheels, the
drawings of Omniglot, the images of Mini-ImageNet; `--pack` unpacks the parts that have arrived. The
third works through the same list at toy size, in a copy of the project.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from benchmarks import packing

ROOT = Path(__file__).parents[1]
RESULTS, RUNS = ROOT / "benchmarks" / "results", ROOT / "runs"
# A run is asked to stop so long before the end: it finishes a call and writes a checkpoint.
GRACE = 20.0
MOST_FILES, MOST_BYTES = 8, 16 * 2**20
# Compilers get so long ahead of the race; what they have not finished, the race compiles itself.
AHEAD = 120.0
# A fast device takes many steps a call, but no more than a few seconds of them: a run stops between
# calls. Checkpoints besides the last one take longer to write than they can save.
LONG_CALLS = ("--steps_per_call=100", "--checkpoint_every=5000")
ROBOTS = ("cheetah_dir", "cheetah_vel", "ant_dir", "ant_vel", "ant_goal")
TOY_RUN = (
    "--num_meta_steps=4",
    "--steps_per_call=2",
    "--validate_every=2",
    "--checkpoint_every=4",
    "--eval_tasks=4",
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """An entry of the list.

    Attributes:
      name: what `--only` calls it.
      command: what follows `python -m`.
      toy: what is added to the command, or takes the place of its flags, in a rehearsal.
      ahead: commands that may run side by side before, to fill the compilers' caches.
      record: where its record lies in `benchmarks/results`; `None` for the tests, which have none.
      workdir: of a run that can be continued.
      cases: what its record holds when it is complete.
    """

    name: str
    command: tuple[str, ...]
    toy: tuple[str, ...] = ()
    ahead: tuple[tuple[str, ...], ...] = ()
    record: str | None = None
    workdir: str | None = None
    cases: tuple[str, ...] = ()


def race(*cases: str) -> Entry:
    """Meta-gradients against the peers."""
    module = "benchmarks.meta_gradient"
    return Entry(
        "race, " + cases[0],
        (module, "--cases", *cases),
        toy=("--cases", "omniglot, 1 query", "--orders", "1", "--rounds=1"),
        ahead=tuple(
            (module, "--cases", case, "--orders", order, "--compile_only")
            for case in cases
            for order in ("2", "1")
        ),
        record="meta_gradient_gpu.jsonl",
        cases=cases,
    )


def benchmark(name: str, *toy: str) -> Entry:
    return Entry(name, (f"benchmarks.{name}",), toy, record=f"{name}_gpu.jsonl")


def cell(experiment: str, preset: str, algorithm: str = "maml") -> Entry:
    """A cell of a paper's table, at full length."""
    workdir = preset.replace("/", "_")
    return Entry(
        workdir,
        (f"experiments.{experiment}", f"--preset={preset}", *LONG_CALLS),
        TOY_RUN,
        record=f"{experiment}/{preset}/{algorithm}/seed0_gpu/result.json",
        workdir=workdir,
    )


def robot(task: str, algorithm: str) -> Entry:
    """A robot's task at the paper's size, with standardized observations."""
    more = {"trajectories": "40"} if task == "ant_dir" else {}
    more |= {} if task == "cheetah_dir" else {"task": task}  # the default
    more |= {"standardize": "True"}
    named = ",".join([algorithm, *(f"{name}={value}" for name, value in more.items())])
    flags = (f"--{name}={value}" for name, value in more.items())
    workdir = f"{task}_{algorithm}"
    return Entry(
        workdir,
        ("experiments.locomotion", f"--algorithm={algorithm}", *flags),
        ("--num_meta_steps=1", "--validate_every=1", "--checkpoint_every=1", "--eval_tasks=2"),
        record=f"locomotion/finn2017/{named}/seed0_gpu/result.json",
        workdir=workdir,
    )


CHECKS = (
    "tests/test_algorithms_closed_forms.py",
    "tests/test_algorithms_numpy.py",
    "tests/test_gradients.py",
)
LIST = (
    # Whether patches or native convolutions are faster there.
    benchmark("convolution", "--rounds=1"),
    race("omniglot, 15 queries"),
    cell("omniglot", "finn2017/omniglot_5w1s"),
    cell("miniimagenet", "finn2017/miniimagenet_5w1s_first_order", "fomaml"),
    cell("miniimagenet", "finn2017/miniimagenet_5w1s"),
    cell("omniglot", "finn2017/omniglot_20w1s"),
    cell("miniimagenet", "nichol2018/miniimagenet_5w1s", "reptile"),
    race("mini-imagenet, 15 queries, 5 steps"),
    race("omniglot, 1 query"),
    benchmark("sinusoid", "--rounds=1"),
    benchmark("engines", "--rounds=1"),
    benchmark("remat", "--cases", "sine waves, 5 points", "--rounds=1"),
    benchmark("growth", "--rounds=1"),
    cell("omniglot", "finn2017/omniglot_5w5s"),
    cell("omniglot", "finn2017/omniglot_20w5s"),
    cell("omniglot", "nichol2018/omniglot_20w1s", "reptile"),
    cell("omniglot", "nichol2018/omniglot_20w5s", "reptile"),
    cell("miniimagenet", "finn2017/miniimagenet_5w5s"),
    cell("miniimagenet", "nichol2018/miniimagenet_5w5s", "reptile"),
    race("transformer, 4 x 256, 5 steps", "LSTM, 64 x 128, 5 steps"),
    benchmark("sampling", "--rounds=1"),
    benchmark("throughput", "--cases", "navigation", "--rounds=1"),
    Entry(
        "precision",
        ("benchmarks.precision", "--meta_steps=10000"),
        ("--meta_steps=4",),
        record="precision_gpu.jsonl",
    ),
    *itertools.starmap(robot, itertools.product(ROBOTS, ("maml", "oracle"))),
    Entry(
        "checks",
        ("pytest", "-q", "-n", "8", "--maxprocesses=8", "-W", "ignore", *CHECKS),
        ("-q", "tests/test_algorithms_numpy.py"),
    ),
)


class Worker:
    """Works through a list until the time is up."""

    def __init__(
        self, log: IO[str], budget: float, environment: Mapping[str, str], toy: bool = False
    ):
        self._end = time.monotonic() + budget
        self._toy = toy
        self._environment = {**os.environ, **environment}
        self._log = log
        self.table: list[tuple[str, float, str]] = []

    def work(self, entry: Entry) -> None:
        """Carries an entry out and notes what became of it."""
        start = time.monotonic()
        if not self._toy and self._recorded(entry):
            outcome = "is recorded"
        elif self._end - start < 2 * GRACE:
            outcome = "no time left"
        else:
            self._ahead(entry)
            outcome = self._carry_out(entry)
        seconds = time.monotonic() - start
        self.table.append((entry.name, seconds, outcome))
        print(f"{entry.name}: {outcome} ({seconds:.0f} s)", flush=True)

    def _recorded(self, entry: Entry) -> bool:
        if entry.record is None:
            return False
        path = RESULTS / entry.record
        if not entry.cases:
            return path.exists()
        rows = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
        return {*entry.cases} <= {row["case"] for row in rows}

    def _ahead(self, entry: Entry) -> None:
        if self._toy or not entry.ahead:
            return
        end = time.monotonic() + AHEAD
        started = [self._start(command) for command in entry.ahead]
        for process in started:
            self._wait(process, end)

    def _command(self, entry: Entry) -> tuple[str, ...]:
        command = entry.command
        if self._toy:  # of a flag given twice the last counts
            command = (*(command if entry.workdir else command[:1]), *entry.toy)
        return (*command, f"--workdir={RUNS / entry.workdir}") if entry.workdir else command

    def _carry_out(self, entry: Entry) -> str:
        status = self._wait(self._start(self._command(entry)))
        if status is None or not entry.workdir:
            return "stopped for lack of time" if status is None else f"exit status {status}"
        if status:
            return f"exit status {status}"
        recorded = self._wait(self._start(("benchmarks.record", str(RUNS / entry.workdir))))
        return "finished and recorded" if recorded == 0 else "finished, not recorded"

    def _start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        print("+ python -m", *command, file=self._log, flush=True)
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=self._environment,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def _wait(self, process: subprocess.Popen[bytes], end: float = float("inf")) -> int | None:
        """The exit status; `None` where it was stopped because the time is up."""
        try:
            return process.wait(max(min(self._end - GRACE, end) - time.monotonic(), 1.0))
        except subprocess.TimeoutExpired:
            process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return None


def gather(out: Path, since: float) -> list[str]:
    """Packs new records and unfinished runs; returns the files left out."""
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    new = [path for path in files if path.stat().st_mtime >= since]
    _tar(out / "records.tar.gz", RESULTS, new)
    left_out = []
    begun = sorted(path.parent for path in RUNS.glob("*/config.json"))
    for workdir in begun:
        archive = out / f"run-{workdir.name}.tar.gz"
        _tar(archive, RUNS, _needed(workdir))
        if archive.stat().st_size > MOST_BYTES or len([*out.iterdir()]) > MOST_FILES:
            archive.unlink()
            left_out.append(workdir.name)
    return left_out


def _needed(workdir: Path) -> Iterator[Path]:
    """The files needed to continue a run: of the checkpoints, only the last."""
    steps = sorted(
        (path for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()),
        key=lambda path: int(path.name),
    )
    for path in workdir.rglob("*"):
        earlier = any(path.is_relative_to(step) for step in steps[:-1])
        if path.is_file() and not earlier and not path.name.startswith("events."):
            yield path


def _tar(archive: Path, root: Path, files: Sequence[Path] | Iterator[Path]) -> None:
    with tarfile.open(archive, "w:gz") as tar:
        for path in files:
            tar.add(path, path.relative_to(root))


def run(arguments: argparse.Namespace) -> None:
    since = time.time()
    out = Path(arguments.out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    environment = packing.unpack(Path(arguments.pack)) if arguments.pack else {}
    os.environ.update(environment)  # where the data are
    device = "cuda,cpu" if shutil.which("nvidia-smi") else "cpu"
    caches = {
        "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", device),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",  # which the tests do otherwise
        # Programs that several commands share are compiled once; none takes all of the memory.
        "JAX_COMPILATION_CACHE_DIR": str(Path(tempfile.gettempdir()) / "metajax-programs"),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    with (out / "log.txt").open("a") as log:
        worker = Worker(log, arguments.budget, {**environment, **caches}, arguments.toy)
        for entry in LIST:
            if not arguments.only or entry.name in arguments.only:
                worker.work(entry)
    left_out = gather(out, since)
    print("\n| entry | seconds | outcome |\n|---|---|---|")
    for name, seconds, outcome in worker.table:
        print(f"| {name} | {seconds:.0f} | {outcome} |")
    if left_out:
        print(f"too large or too many to bring back: {', '.join(left_out)}")


def rehearse(arguments: argparse.Namespace) -> int:
    """The list at toy size, in a copy without a repository, as on a bare machine."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "metajax"
        listed = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for name in listed:
            if (ROOT / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, copy / name)
        command = [sys.executable, "-m", "benchmarks.accelerator", "--toy", "--out=out"]
        command += ["--only", *(arguments.only or REHEARSED)]
        done = subprocess.run([*command, f"--budget={arguments.budget}"], cwd=copy)
        print((copy / "out" / "log.txt").read_text()[-2000:])
        brought = sorted((path.name, path.stat().st_size) for path in (copy / "out").iterdir())
        print(json.dumps(dict(brought)))
    return done.returncode


# One of each kind.
REHEARSED = ("checks", "race, omniglot, 1 query", "finn2017_omniglot_5w1s", "sinusoid")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=540.0, help="seconds")
    parser.add_argument("--out", default="accelerator-out")
    parser.add_argument("--only", nargs="+", choices=[entry.name for entry in LIST])
    parser.add_argument("--pack", help="the folder of what --prepare packed")
    parser.add_argument("--prepare", help="the folder to pack into")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--toy", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.prepare:
        packing.prepare(Path(arguments.prepare))
        return 0
    if arguments.rehearse:
        return rehearse(arguments)
    run(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
