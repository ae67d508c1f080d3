"""The launchers as they are typed: real runs, small ones, and what a mistake answers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import common, omniglot, protocols, sinusoid
from metajax import train
from tests.experiments.launching import launch

ROOT = Path(__file__).parents[2]
SMALL = [
    "--num_meta_steps=4",
    "--meta_batch_size=2",
    "--steps_per_call=2",
    "--validate_every=4",
    "--checkpoint_every=4",
    "--eval_tasks=3",
    "--num_eval_steps=2",
    "--validation_steps=1",
]


def command(experiment, *arguments, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{experiment}", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        **kwargs,
    )


def read(workdir, name="result.json"):
    return json.loads((workdir / name).read_text())


def assert_figures(workdir, *names):
    for name in names:
        assert (workdir / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("algorithm", common.ALGORITHMS)
def test_sinusoid_runs_every_algorithm(tmp_path, algorithm):
    launch(sinusoid, *SMALL, f"--algorithm={algorithm}", f"--workdir={tmp_path}")
    result = read(tmp_path)
    assert (result["experiment"], result["algorithm"]) == ("sinusoid", algorithm)
    assert result["meta_steps"] == 4
    assert result["wall_seconds"] > 0
    assert {"device", "versions", "commit", "config", "preset"} <= set(result)
    rows = result["evaluation"]["mse"]
    assert {"K=5", "K=10", "K=20", "pretrained K=10", "random K=10"} <= set(rows)
    for row in rows.values():
        assert row["num_tasks"] == 3
        assert len(row["mean"]) == len(row["ci95"]) == 3
        assert np.isfinite(row["mean"]).all()
    assert_figures(tmp_path, "adaptation.png", "learning_curve.png", "training.png")


def test_omniglot_trains_and_is_evaluated_again(tmp_path, omniglot_data_dir, capsys):
    where = [f"--data_dir={omniglot_data_dir}", f"--workdir={tmp_path}"]
    launch(omniglot, *SMALL, "--shots=2", *where)
    first = read(tmp_path)
    for name in ("transductive", "non_transductive"):
        row = first["evaluation"]["accuracy"][name]
        assert len(row["mean"]) == 3
        assert all(0 <= mean <= 1 for mean in row["mean"])
    assert first["config"]["overrides"] == sorted(
        [
            "checkpoint_every",
            "meta_batch_size",
            "shots",
            "steps_per_call",
            "validate_every",
            "validation_steps",
        ]
    )
    assert_figures(tmp_path, "learning_curve.png", "training.png")
    elsewhere = {"num_devices": 4, "device": {"platform": "tpu"}}
    (tmp_path / "result.json").write_text(json.dumps({**first, "trained_on": elsewhere}))
    with pytest.raises(common.UsageError, match="has --preset=finn2017/omniglot_5w1s"):
        launch(omniglot, "--mode=eval", "--preset=finn2017/omniglot_20w1s", *where)
    (tmp_path / "audit.json").unlink()
    with pytest.raises(train.WorkdirError, match="ways: 5 there, 4 here"):
        launch(omniglot, *SMALL, "--shots=2", "--ways=4", *where)
    assert not (tmp_path / "audit.json").exists()  # nothing is written to another run's
    launch(omniglot, "--mode=eval", "--num_eval_steps=3", "--eval_tasks=5", *where)
    again = read(tmp_path)
    assert again["trained_on"] == elsewhere
    assert again["device"] == first["device"] == first["trained_on"]["device"]
    assert again["meta_steps"] == 4
    assert len(again["evaluation"]["accuracy"]["transductive"]["mean"]) == 4
    assert again["evaluation"]["accuracy"]["transductive"]["num_tasks"] == 5
    assert "after each adaptation step" in capsys.readouterr().out


# The others are launched on sinusoids as well.
@pytest.mark.parametrize(
    "algorithm",
    ["reptile", *(pytest.param(name, marks=pytest.mark.slow) for name in ("imaml", "boil"))],
)
def test_omniglot_runs_other_algorithms(tmp_path, omniglot_data_dir, algorithm):
    launch(
        omniglot,
        *SMALL,
        "--network=mlp",
        "--num_steps=2",
        f"--algorithm={algorithm}",
        f"--data_dir={omniglot_data_dir}",
        f"--workdir={tmp_path}",
    )
    mean = read(tmp_path)["evaluation"]["accuracy"]["transductive"]["mean"]
    assert all(0 <= value <= 1 for value in mean)


@pytest.mark.parametrize(
    ("experiment", "arguments", "message"),
    [
        ("sinusoid", ["--num_meta_stpes=5"], "Unknown command line flag 'num_meta_stpes'"),
        ("sinusoid", ["--algorithm=mamll"], "value should be one of <maml|fomaml|reptile"),
        ("sinusoid", ["--num_meta_steps=0"], "flag --num_meta_steps"),
        ("sinusoid", ["--validate_every=7"], "validate_every=7 must be a multiple of"),
        ("sinusoid", ["--shots=ten"], "flag --shots=ten"),
        ("sinusoid", ["eval"], "unexpected argument 'eval'"),
        ("sinusoid", ["--preset=finn2016"], "--preset=finn2016 is unknown"),
        ("sinusoid", ["--mode=eval"], "--mode=eval needs --workdir"),
        ("sinusoid", ["--algorithm=reptile", "--num_steps=0"], "reptile needs at least one step"),
        ("sinusoid", ["--num_devices=2", "--meta_batch_size=5"], "--meta_batch_size=5: 2 devices"),
        ("sinusoid", ["--workdir=README.md"], "README.md is a file"),
        ("omniglot", ["--inner_batch=9"], "--inner_batch=9 is more than the 5 examples"),
        ("omniglot", ["--num_devices=3", "--meta_batch_size=6"], "--validation_tasks=200: 3 dev"),
        ("omniglot", ["--ways=0"], "flag --ways=0"),
        ("omniglot", ["--data_dir=/nowhere"], "no prepared Omniglot in /nowhere"),
        ("omniglot", ["--tail=shared"], "--tail=shared is for fomaml"),
        ("miniimagenet", ["--preset=finn2017/omniglot_5w1s"], "is unknown; --preset=list"),
        ("miniimagenet", ["--data_dir=/nowhere"], "/nowhere"),
    ],
)
def test_a_mistake_is_one_clear_line(experiment, arguments, message, tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = command(experiment, *arguments, env=environment)
    assert done.returncode not in (0, None)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train_shots=30"], "shots \\+ queries = 30 \\+ 1 must not exceed"),
        (["--algorithm=imaml", "--noadapt_norm"], "imaml adapts all parameters"),
    ],
)
def test_what_the_data_or_the_network_do_not_allow_is_refused(
    tmp_path, omniglot_data_dir, arguments, message
):
    where = [f"--data_dir={omniglot_data_dir}", f"--workdir={tmp_path}"]
    with pytest.raises(common.UsageError, match=message):
        launch(omniglot, *arguments, *where)


def test_evaluation_keeps_the_configuration(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"experiment": "sinusoid", "preset": "finn2017", "algorithm": "maml", "seed": 0})
    )
    with pytest.raises(common.UsageError, match="leave out --seed"):
        launch(sinusoid, "--mode=eval", "--seed=1", f"--workdir={tmp_path}")
    with pytest.raises(common.UsageError, match="is of the experiment sinusoid"):
        launch(omniglot, "--mode=eval", f"--workdir={tmp_path}")


PRESETS = {"sinusoid": sinusoid.PRESETS, **protocols.PRESETS}


@pytest.mark.parametrize("experiment", PRESETS)
def test_presets_are_listed(experiment):
    done = command(experiment, "--preset=list")
    assert done.returncode == 0
    names = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    assert names == list(PRESETS[experiment])


@pytest.mark.parametrize("experiment", ["sinusoid", "omniglot"])
def test_help_explains_every_flag(experiment):
    done = command(experiment, "--help")
    preset = next(iter(PRESETS[experiment].values()))
    for name in {"mode", "workdir", "preset", *preset} & set(flags.FLAGS):
        assert f"--{name}" in done.stdout or f"--[no]{name}" in done.stdout


def test_without_a_workdir_a_dated_folder_is_used():
    with flagsaver.flagsaver(workdir=None):
        flags.FLAGS.mark_as_parsed()
        settings = common.resolve("sinusoid", sinusoid.PRESETS, "finn2017", sinusoid.BY_ALGORITHM)
    assert str(settings.workdir).startswith("runs/sinusoid-maml-20")


def test_an_interrupted_command_continues(tmp_path):
    arguments = [
        sys.executable,
        "-m",
        "experiments.sinusoid",
        "--num_meta_steps=2000",
        "--steps_per_call=10",
        "--validate_every=100",
        "--checkpoint_every=100",
        "--eval_tasks=3",
        "--num_eval_steps=1",
        f"--workdir={tmp_path}",
    ]
    process = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "checkpoints" / "100").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert f"repeat the command with --workdir={tmp_path} to continue" in output
    assert not (tmp_path / "result.json").exists()
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read(tmp_path)["meta_steps"] == 2000
