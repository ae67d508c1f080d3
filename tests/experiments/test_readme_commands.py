"""The commands of the README, as they stand there but for their length."""

import re
import shlex
from pathlib import Path

import jax
import pytest

from experiments import command, sweep
from experiments.__main__ import EXPERIMENTS
from experiments.settings import setting_rules

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
LINES = [
    line[line.index("python -m experiments.") :]
    for block in BLOCKS
    for line in block.splitlines()
    if "python -m experiments." in line
]
SWEEPS = [line for line in LINES if "experiments.sweep" in line]
COMMANDS = list(dict.fromkeys(line for line in LINES if line not in SWEEPS))
SHORT = {
    "num_meta_steps": 2,
    "meta_batch_size": 2,
    "steps_per_call": 1,
    "validate_every": 2,
    "checkpoint_every": 2,
    "validation_tasks": 2,
    "validation_steps": 1,
    "eval_tasks": 2,
    "num_eval_steps": 1,
    "trajectories": 2,
    "eval_trajectories": 2,
    "horizon": 4,
    "num_steps": 1,
    "queries": 2,
    "eval_queries": 2,
}


def cheap(line):
    return line if "sinusoid" in line else pytest.param(line, marks=pytest.mark.slow)


def test_all_launchers_of_the_papers_are_shown():
    names = {shlex.split(line)[2].removeprefix("experiments.") for line in COMMANDS}
    assert {"sinusoid", "omniglot", "miniimagenet", "navigation", "locomotion"} <= names


def test_sweeps_are_made(tmp_path):
    for line in SWEEPS:
        words = shlex.split(line.partition(">")[0])[3:]
        if "--table" not in words:
            assert len(sweep.main([*words, f"--runs={tmp_path}"]).splitlines()) == 6


@pytest.mark.parametrize("line", [cheap(line) for line in COMMANDS])
def test_a_command_runs(line, tmp_path, monkeypatch, request):
    _, _, module, *flags = shlex.split(line)
    (launcher,) = (each for each in EXPERIMENTS if f"experiments.{each.name}" == module)
    given = dict(flag.removeprefix("--").split("=") for flag in flags)
    preset = launcher.presets[given.get("preset", next(iter(launcher.presets)))]
    short = {k: v for k, v in SHORT.items() if k in setting_rules(preset)}
    if getattr(preset, "choose", "validation") == "last":
        short.pop("validation_tasks")
    if module.endswith(("omniglot", "miniimagenet")):
        request.getfixturevalue("random_images")
    monkeypatch.chdir(tmp_path)
    words = [*flags, *(f"--{name}={value}" for name, value in short.items())]
    with jax.numpy_rank_promotion("allow"):  # Brax's own code
        assert command.main(launcher, words) == 0
    assert (tmp_path / given["workdir"] / "result.json").exists()
