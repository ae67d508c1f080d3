"""The commands of the README, as they stand there but for their length."""

import re
import shlex
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import command, compare, sinusoid, status, sweep
from experiments.__main__ import main as list_launchers
from experiments.explore.__main__ import main as explore
from experiments.launchers import EXPERIMENTS
from experiments.settings import Setting, setting_rules
from tests.experiments.conftest import replace_data

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
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
NO_FLAG = Setting("", shown=False)
# Commands within the text, in its order, and what its placeholders stand for here.
INLINE = re.findall(r"`((?:python -m |metajax (?=[a-z])|--mode=eval)[^`]*)`", README)
MEANT = {
    "--preset=...": "--preset=finn2017/omniglot_5w1s",
    "--data_dir=FOLDER": "--data_dir=folder --size=16",
    "--mode=eval --workdir=...": "python -m experiments.sinusoid --mode=eval --workdir=runs/maml",
}
TESTED_ELSEWHERE = {
    "python -m benchmarks.verify --all": "test_verify",
    "metajax omniglot --preset=...": "test_package",
    "metajax list": "test_package",
    "python -m experiments.reptile_gradients": "test_reptile_runs",
    "python -m experiments.reptile_batches": "test_reptile_runs",
    "--mode=eval": "a name in a table",
}


def cheap(line):
    return line if "sinusoid" in line else pytest.param(line, marks=pytest.mark.slow)


def shortened(preset):
    """The flags that make a run of seconds."""
    short = {k: v for k, v in SHORT.items() if setting_rules(preset).get(k, NO_FLAG).shown}
    if getattr(preset, "choose", "validation") == "last":
        short.pop("validation_tasks")
    return [f"--{name}={value}" for name, value in short.items()]


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
    if module.endswith(("omniglot", "miniimagenet")):
        request.getfixturevalue("random_images")
    monkeypatch.chdir(tmp_path)
    words = [*flags, *shortened(preset)]
    with jax.numpy_rank_promotion("allow"):  # Brax's own code
        assert command.main(launcher, words) == 0
    assert (tmp_path / given["workdir"] / "result.json").exists()


@pytest.mark.slow
def test_the_commands_within_the_text_run_one_after_another(
    tmp_path, monkeypatch, random_images, capsys
):
    replace_data(monkeypatch, {"cifar_fs": random_images["mini_imagenet"]}, "cifar_fs")
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 16, 16, 3), np.uint8)
    for place in np.ndindex(30, 8):
        path = tmp_path / "folder" / f"class {place[0]}" / f"{place[1]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[place]).save(path)
    for algorithm in ("maml", "fomaml"):  # the page takes them as given
        words = [f"--algorithm={algorithm}", f"--workdir=runs/{algorithm}"]
        command.main(sinusoid.EXPERIMENT, [*words, *shortened(sinusoid.FINN)])

    others = {
        "experiments": list_launchers,
        "experiments.compare": compare.main,
        "experiments.explore": explore,
        "experiments.status": status.main,
    }
    done = []
    for line in INLINE:
        if line in TESTED_ELSEWHERE:
            continue
        for placeholder, meaning in MEANT.items():
            line = line.replace(placeholder, meaning)
        _, _, module, *flags = shlex.split(line)
        done.append(module)
        if module in others:
            monkeypatch.setattr(sys, "argv", [module, *flags])
            others[module]()
            continue
        (launcher,) = (each for each in EXPERIMENTS if f"experiments.{each.name}" == module)
        preset = next(iter(launcher.presets.values()))
        evaluates = "--mode=eval" in flags
        shown = module == "experiments.show_episodes"
        short = ["--num_eval_steps=2"] if evaluates else [] if shown else shortened(preset)
        assert command.main(launcher, [*flags, *short]) == 0
    assert len(done) == len(set(done)) == 9
    assert "runs/comparison/comparison.html" in capsys.readouterr().out
