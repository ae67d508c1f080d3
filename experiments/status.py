"""Shows how far runs are, without disturbing them: it reads what they have written so far.

Command:   python -m experiments.status [FOLDER ...]
Hardware:  any
Wall time: some seconds
Expected:  a line for every working directory in the folders: its step, the meta-steps a second, the
           time left, the best validation, and how long ago it last wrote
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import tables
from experiments.parser import Parser
from metajax import train

COLUMNS = ("run", "step", "of", "steps/s", "left", "best validation", "last wrote")
# The lines from which the rate is taken: the start of a run, which compiles, is behind them.
RECENT = 20
# Of metrics whose names end like this, less is better.
LESS_IS_BETTER = ("loss", "mse", "error")


class Status(NamedTuple):
    """How far a run is.

    Attributes:
      step: its last step in `metrics.jsonl`.
      steps: its meta-steps in all, `None` if its configuration does not say.
      rate: meta-steps per second of its last lines, `None` before there are two.
      best: the best scalar of its validations, with its name and step; empty without validation.
      age: seconds since it last wrote.
      finished: whether it has a `result.json`.
    """

    step: int
    steps: int | None
    rate: float | None
    best: str
    age: float
    finished: bool

    @property
    def left(self) -> float | None:
        """Seconds until the last meta-step, at the rate of the last lines."""
        if self.finished or self.steps is None or not self.rate:
            return None
        return (self.steps - self.step) / self.rate


def workdirs(folder: Path) -> Iterator[Path]:
    """The working directories in a folder, itself among them, in the order of their names."""
    if (folder / "config.json").is_file():
        yield folder
        return
    for each in sorted(path for path in folder.iterdir() if path.is_dir()):
        yield from workdirs(each)


def read(workdir: Path) -> Status:
    """Reads how far a run is.

    Raises:
      WorkdirError: if `config.json` cannot be read.
    """
    config = train.read_config(workdir)
    metrics = workdir / "metrics.jsonl"
    written = metrics if metrics.exists() else workdir / "config.json"
    lines = list(_lines(metrics)) if metrics.exists() else []
    return Status(
        step=max((line["step"] for line in lines), default=0),
        steps=config.get("num_meta_steps"),
        rate=_rate([line for line in lines if "seconds" in line][-RECENT:]),
        best=_best(lines),
        age=time.time() - written.stat().st_mtime,
        finished=(workdir / "result.json").exists(),
    )


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """The lines of a file that a run may be writing: its last one may be incomplete."""
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
            if isinstance(line["step"], int):
                yield line
        except (ValueError, LookupError, TypeError):
            continue


def _rate(lines: Sequence[Mapping[str, Any]]) -> float | None:
    if len(lines) < 2:
        return None
    seconds = lines[-1]["seconds"] - lines[0]["seconds"]
    return (lines[-1]["step"] - lines[0]["step"]) / seconds if seconds > 0 else None


def _best(lines: Sequence[Mapping[str, Any]]) -> str:
    found = [
        (value, line["step"], key)
        for line in lines
        for key, value in line.items()
        if key.startswith("validation/") and np.ndim(value) == 0 and np.isfinite(value)
    ]
    found = [each for each in found if each[2] == found[0][2]]
    if not found:
        return ""
    name = found[0][2].removeprefix("validation/")
    sign = -1 if name.endswith(LESS_IS_BETTER) else 1
    value, step, _ = max(found, key=lambda each: sign * each[0])
    return f"{name} {value:.4g} at {step:,}"


def row(name: str, status: Status) -> list[str]:
    """The cells of a run."""
    left = "" if status.left is None else _duration(status.left)
    return [
        name,
        f"{status.step:,}",
        "" if status.steps is None else f"{status.steps:,}",
        "" if status.rate is None or status.finished else f"{status.rate:.3g}",
        "finished" if status.finished else left,
        status.best,
        f"{_duration(status.age)} ago",
    ]


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def table(folders: Sequence[Path]) -> list[list[str]]:
    """A row for every run in the folders, which are named with their paths below the folders.

    Raises:
      FileNotFoundError: if a folder does not exist, or there is no run in any.
      NotADirectoryError: if it is no folder.
    """
    rows = []
    for folder in folders:
        for workdir in workdirs(folder):
            name = str(workdir if workdir == folder else workdir.relative_to(folder))
            try:
                rows.append(row(name, read(workdir)))
            except train.WorkdirError as error:
                rows.append([name, *[""] * (len(COLUMNS) - 2), str(error)])
    if not rows:
        raise FileNotFoundError(f"there is no run in {', '.join(map(str, folders))}")
    return [list(COLUMNS), *rows]


def main() -> None:
    """The command."""
    parser = Parser("python -m experiments.status", "Shows how far runs are, and disturbs none.")
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        metavar="FOLDER",
        default=[Path("runs")],
        help="a working directory, or a folder of some; without one, `runs`",
    )
    folders = parser.parse_args().folders
    for folder in folders:
        if not folder.is_dir():
            parser.error(f"{folder} is no folder: name a working directory, or a folder of some")
    try:
        print(tables.aligned(table(folders)))
    except FileNotFoundError as error:
        parser.error(f"{error}: name a working directory, or a folder of some")


if __name__ == "__main__":
    main()
