"""Many runs: one command per line, for an array job or `xargs`, and one table of their results.

Command: python -m experiments.sweep PRESET ... [--seeds=0:3] [--vary NAME=VALUE,VALUE ...]
             [--runs=FOLDER] [--table]

Writes the command of every run that is not finished, for each preset, seed and combination of
values, with a working directory of its own in FOLDER (by default `runs`). As many at a time as
there are processors to spare:

    python -m experiments.sweep finn2017/omniglot_5w1s --seeds=0:3 --vary shots=1,5 >runs.txt
    xargs -L 1 -P 2 env <runs.txt

For Slurm see `experiments/jobs/slurm.sh`. With `--table`, the results of those that are finished
are gathered instead: the mean over the seeds, and its 95% interval by Student's distribution.
A preset that several launchers have, such as `finn2017`, is written `sinusoid:finn2017`.
"""

from __future__ import annotations

import collections
import itertools
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import command, skeleton, tables
from experiments import settings as typed
from experiments.command import Experiment
from experiments.launchers import EXPERIMENTS
from experiments.parser import Parser
from experiments.settings import UsageError
from metajax import train


class Run(NamedTuple):
    """One run of a sweep.

    Attributes:
      experiment: its launcher.
      preset: its preset.
      changes: the varied settings, as they are written on the command line.
      seed: its seed.
    """

    experiment: Experiment
    preset: str
    changes: Mapping[str, str]
    seed: int

    @property
    def case(self) -> str:
        """What runs of other seeds have in common."""
        changed = ",".join(
            f"{name}={value.replace('/', '_')}" for name, value in self.changes.items()
        )
        return "/".join([self.experiment.name, self.preset, *([changed] if changed else [])])

    @property
    def flags(self) -> list[str]:
        values = {"preset": self.preset, "seed": self.seed, **self.changes}
        return [f"--{name}={value}" for name, value in values.items()]

    def workdir(self, runs: Path) -> Path:
        return runs / self.case / f"seed{self.seed}"

    def line(self, runs: Path) -> str:
        """The command."""
        words = ["python", "-m", f"experiments.{self.experiment.name}", *self.flags]
        return shlex.join([*words, f"--workdir={self.workdir(runs)}"])


def find(name: str) -> tuple[Experiment, str]:
    """The launcher of a preset `PRESET` or `LAUNCHER:PRESET`.

    Raises:
      UsageError: if there is none, or more than one.
    """
    launcher, _, preset = name.rpartition(":")
    found = [
        each
        for each in EXPERIMENTS
        if each.build is not None and preset in each.presets and launcher in ("", each.name)
    ]
    if not found:
        raise UsageError(f"{name} is no preset: python -m experiments lists them.")
    if len(found) > 1:
        names = " or ".join(f"{each.name}:{preset}" for each in found)
        raise UsageError(f"several launchers have the preset {name}: write {names}.")
    return found[0], preset


def seeds(text: str) -> list[int]:
    """The seeds of `0,3,7`, or of `0:3`, which are 0, 1 and 2."""
    try:
        first, colon, end = text.partition(":")
        found = [*range(int(first), int(end))] if colon else [int(x) for x in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 0 or len({*found}) < len(found):
        raise UsageError(f"--seeds={text} must be as 0:3 or 0,1,2: whole numbers, none twice.")
    return found


def varied(words: Sequence[str]) -> dict[str, list[str]]:
    """The values of `NAME=VALUE,VALUE`, by name."""
    found: dict[str, list[str]] = {}
    for word in words:
        name, equals, values = word.partition("=")
        listed = values.split(",")
        if not equals or "" in listed or len({*listed}) < len(listed):
            raise UsageError(f"--vary {word} must be NAME=VALUE,VALUE, none twice.")
        if name in found or name in ("seed", "preset", "workdir", "mode"):
            raise UsageError(f"--vary {word}: {name} is given elsewhere.")
        found[name] = listed
    return found


def make_runs(presets: Sequence[str], seeds: Sequence[int], vary: Mapping[str, Any]) -> list[Run]:
    """All runs of a sweep, checked as their launchers would.

    Raises:
      UsageError: for a name or a value that a launcher would refuse.
    """
    combinations = [
        dict(zip(vary, values, strict=True)) for values in itertools.product(*vary.values())
    ]
    found = []
    if len({*presets}) < len(presets):
        raise UsageError("a preset is given twice.")
    for name in presets:
        experiment, preset = find(name)
        for changes in combinations:
            found += [Run(experiment, preset, changes, seed) for seed in seeds]
    wanted = [(run.preset, configuration(run), run.changes.get("data_dir")) for run in found]
    for i, each in enumerate(wanted):
        if each in wanted[:i]:
            raise UsageError(f"{found[i].case} is the same run as another one of the sweep.")
    return found


def configuration(run: Run) -> dict[str, Any]:
    """The settings of a run, for its training and its evaluation."""
    given = run.experiment.parse(run.flags)
    launch = typed.setting_rules(run.experiment.launch)
    given = {name: value for name, value in given.items() if name not in launch}
    settings, _ = command.with_changes(run.experiment, run.preset, given)
    command.check(run.experiment, run.preset, given, settings)
    return {**typed.training_config(settings), **typed.evaluation_config(settings)}


def gather(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The table of the evaluations of each case."""
    cells: list[Sequence[str]] = [("run", "seeds", "metric", "step", "mean over seeds")]
    for case, evaluations in found.items():
        measured = collections.defaultdict(list)
        for evaluation in evaluations:
            for name, row in tables.evaluations(evaluation).items():
                for step, mean in zip(row["steps"], row["mean"], strict=True):
                    measured[name.replace(" ", "/"), step].append(float(mean))
        last = {name: max(step for n, step in measured if n == name) for name, _ in measured}
        for (name, step), means in measured.items():
            if step in (0, 1, last[name]):
                cells.append((case, str(len(means)), name, str(step), tables.over_seeds(means, 4)))
    return tables.aligned(cells)


def main(argv: Sequence[str]) -> str:
    """Carries out a command line, and returns what is to be printed.

    Raises:
      UsageError: for a sweep that cannot be made.
    """
    parser = Parser("python -m experiments.sweep", str(__doc__))
    parser.add_argument("presets", nargs="+", metavar="PRESET")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--vary", action="append", default=[], metavar="NAME=VALUE,VALUE")
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_intermixed_args(argv)
    folder = train.place(arguments.runs)
    all_runs = make_runs(arguments.presets, seeds(arguments.seeds), varied(arguments.vary))
    found = collections.defaultdict(list)
    lines = []
    for run in all_runs:
        evaluation = skeleton.finished(run.workdir(folder), configuration(run))
        if evaluation is None:
            lines.append(run.line(folder))
        else:
            found[run.case].append(evaluation)
    if not arguments.table:
        return "\n".join(lines)
    if not found:
        raise UsageError(f"no run of the sweep is finished in {folder}.")
    missing = f"\n{len(lines)} of {len(all_runs)} runs are not finished" if lines else ""
    return gather(found) + missing


if __name__ == "__main__":
    try:
        if printed := main(sys.argv[1:]):
            print(printed)
    except (UsageError, train.WorkdirError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
