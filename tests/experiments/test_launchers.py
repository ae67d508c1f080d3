"""The launchers as they are typed: real runs, small ones, and what a mistake answers."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import command as commands
from experiments import devices, images, navigation, omniglot, sinusoid
from experiments.launchers import EXPERIMENTS
from experiments.settings import UsageError
from experiments.supervised import ALGORITHMS
from metajax import train
from tests.experiments.launching import SMALL, launch

ROOT = Path(__file__).parents[2]

SMALL_RL = ["--eval_tasks=2", "--eval_trajectories=2", "--num_eval_steps=1"]


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


def costly(algorithm):
    """The first in every run, all in the slow ones."""
    return algorithm if algorithm == "maml" else pytest.param(algorithm, marks=pytest.mark.slow)


@pytest.mark.parametrize("algorithm", [costly(name) for name in ALGORITHMS])
def test_sinusoid_runs_every_algorithm(tmp_path, algorithm):
    launch(sinusoid, *SMALL, f"--algorithm={algorithm}", f"--workdir={tmp_path}")
    result = read(tmp_path)
    assert (result["experiment"], result["algorithm"]) == ("sinusoid", algorithm)
    assert result["meta_steps"] == 4
    assert result["wall_seconds"] > 0
    assert {"device", "versions", "commit", "config", "preset"} <= set(result)
    rows = result["evaluation"]["mse"]
    assert {f"{each}K=10" for each in ("", "last ", "pretrained ", "random ", "oracle ")} <= set(
        rows
    )
    for name, row in rows.items():
        assert row["num_tasks"] == 3
        steps = 1 if name.startswith("oracle") else 3
        assert len(row["mean"]) == len(row["ci95"]) == len(row["quantiles"]["0.5"]) == steps
        assert np.isfinite(row["mean"]).all()
        assert row["increased"][0] == 0
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
    with pytest.raises(UsageError, match="has --preset=finn2017/omniglot_5w1s"):
        launch(omniglot, "--mode=eval", "--preset=finn2017/omniglot_20w1s", *where)
    (tmp_path / "audit.json").unlink()
    with pytest.raises(train.WorkdirError, match="ways: 5 there, 4 here"):
        launch(omniglot, *SMALL, "--shots=2", "--ways=4", *where)
    assert not (tmp_path / "audit.json").exists()  # nothing is written to another run's
    launch(omniglot, "--mode=eval", "--num_eval_steps=3", "--eval_tasks=5", *where)
    assert read(tmp_path) == {**first, "trained_on": elsewhere}  # that of the training is kept
    again = read(tmp_path / "evaluations" / "5-3")
    assert_figures(tmp_path / "evaluations" / "5-3", "learning_curve.png", "training.png")
    assert again["trained_on"] == elsewhere
    assert again["device"] == first["device"] == first["trained_on"]["device"]
    assert again["meta_steps"] == 4
    assert len(again["evaluation"]["accuracy"]["transductive"]["mean"]) == 4
    assert again["evaluation"]["accuracy"]["transductive"]["num_tasks"] == 5
    assert "after each adaptation step" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["reptile", "imaml", "boil"])
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


def test_a_finished_run_keeps_its_evaluation(tmp_path):
    launch(sinusoid, *SMALL, f"--workdir={tmp_path}")
    before = (tmp_path / "result.json").read_bytes()
    with pytest.raises(UsageError, match=r"--eval_tasks=2: the run in .* is finished, .*=3\. --m"):
        launch(sinusoid, *SMALL, "--eval_tasks=2", f"--workdir={tmp_path}")
    assert (tmp_path / "result.json").read_bytes() == before


def test_an_evaluation_shares_its_own_tasks(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"experiment": "sinusoid", "preset": "finn2017", "algorithm": "maml", "overrides": []}'
    )
    given = {"mode": "eval", "workdir": str(tmp_path), "num_devices": 3, "eval_tasks": 3}
    assert commands.resolve(sinusoid.EXPERIMENT, given).launch.num_devices == 3
    with pytest.raises(UsageError, match="--meta_batch_size=25: 3 devices cannot share"):
        commands.resolve(sinusoid.EXPERIMENT, {"num_devices": 3, "eval_tasks": 3})


def test_a_folder_of_images_brings_the_algorithms_of_photographs():
    found = commands.resolve(images.EXPERIMENT, {"algorithm": "reptile"})
    assert (found.settings.outer_optimizer, found.settings.inner_batch) == ("sgd", 10)


def test_a_home_folder_is_meant_by_its_sign(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert commands.resolve(sinusoid.EXPERIMENT, {"workdir": "~/run"}).workdir == tmp_path / "run"


def test_a_workdir_of_another_experiment_is_told_in_a_line(tmp_path):
    (tmp_path / "config.json").write_text('{"experiment": "omniglot"}')
    with pytest.raises(UsageError, match="holds a run of the experiment omniglot: choose another"):
        launch(sinusoid, f"--workdir={tmp_path}")


def test_an_evaluation_has_the_settings_of_the_run(tmp_path):
    launch(sinusoid, *SMALL, f"--workdir={tmp_path}")
    command = commands.resolve(
        sinusoid.EXPERIMENT, {"mode": "eval", "workdir": str(tmp_path), "num_eval_steps": 4}
    )
    assert (command.settings.eval_tasks, command.settings.num_eval_steps) == (3, 4)


# TensorStore reports to a loop that orbax has closed, because a write beside it failed.
CLOSED_LOOP = """
import asyncio, tempfile, time, numpy, tensorstore
import experiments

async def write(store):
    await store.write(numpy.random.rand(500, 500, 20))

async def begin(folder):
    kvstore = {"driver": "file", "path": folder}
    metadata = {"shape": [500, 500, 20], "dtype": "<f8", "chunks": [100, 100, 20]}
    spec = {"driver": "zarr", "kvstore": kvstore, "metadata": metadata}
    store = await tensorstore.open(spec, create=True)
    task = asyncio.ensure_future(write(store))
    await asyncio.sleep(0.001)
    return task

with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(begin(folder))
    loop.close()
    time.sleep(1.5)
    assert not task.done()
    task._log_destroy_pending = False
"""


def test_threads_of_a_failed_checkpoint_report_nothing():
    done = subprocess.run(
        [sys.executable, "-c", CLOSED_LOOP], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_further_writes_of_a_failed_checkpoint_report_nothing():
    failing = """
import asyncio, experiments

async def write():
    raise ValueError("no space")

async def save():
    asyncio.gather(write(), write())
    await asyncio.sleep(0.01)

asyncio.run(save())
"""
    done = subprocess.run([sys.executable, "-c", failing], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_interrupted_import_leaves_no_traceback():
    interrupted = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores the signal
import experiments
signal.raise_signal(signal.SIGINT)
"""
    done = subprocess.run(
        [sys.executable, "-c", interrupted], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGINT
    assert done.stderr == "error: interrupted.\n"


@pytest.mark.parametrize(("arguments", "status"), [(["--num_meta_stpes=5"], 1)])
def test_on_the_command_line_there_is_no_traceback(arguments, status):
    done = command("sinusoid", *arguments)
    assert done.returncode == status
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train_shots=30"], "shots \\+ queries = 30 \\+ 1 must not exceed"),
        (["--algorithm=imaml", "--noadapt_norm"], "imaml adapts all parameters"),
        (["--algorithm=meta_sgd", "--noadapt_norm"], "meta_sgd adapts all parameters"),
    ],
)
def test_what_the_data_or_the_network_do_not_allow_is_refused(
    tmp_path, omniglot_data_dir, arguments, message
):
    where = [f"--data_dir={omniglot_data_dir}", f"--workdir={tmp_path}"]
    with pytest.raises(UsageError, match=message):
        launch(omniglot, *arguments, *where)


@pytest.mark.slow
def test_help_is_what_the_command_line_prints():
    done = command("sinusoid", "--help")
    assert done.returncode == 0, done.stderr
    assert "usage: python -m experiments.sinusoid" in done.stdout
    assert "--num_meta_steps (default: 70000)" in done.stdout


def test_launchers_are_listed():
    done = subprocess.run(
        [sys.executable, "-m", "experiments"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for experiment in EXPERIMENTS:
        assert f"\n{experiment.name}: {experiment.summary}\n" in done.stdout
        assert all(f"\n{name} " in done.stdout for name in experiment.presets)


def test_without_a_workdir_a_dated_folder_is_used():
    found = commands.resolve(sinusoid.EXPERIMENT, {})
    assert str(found.workdir).startswith("runs/sinusoid-maml-20")
    assert (found.preset, found.settings, found.overrides) == ("finn2017", sinusoid.FINN, ())


@pytest.mark.parametrize(
    ("tasks", "cores", "expected"), [(4, 2, 2), (25, 2, 1), (6, 4, 3), (32, 64, 8)]
)
def test_as_many_devices_as_can_share_the_tasks(tasks, cores, expected, monkeypatch):
    monkeypatch.setattr(devices, "num_cores", lambda: cores)
    given = {"meta_batch_size": tasks, "eval_tasks": 2 * tasks, "validation_tasks": tasks}
    found = commands.resolve(omniglot.EXPERIMENT, given)
    assert found.launch.num_devices == expected
    assert (1 if found.mesh is None else found.mesh.size) == expected
    serial = commands.resolve(
        omniglot.EXPERIMENT, {**given, "algorithm": "reptile", "carry": "serial"}
    )
    assert serial.mesh is None


def test_programs_are_kept_unless_jax_is_told_where(tmp_path, monkeypatch):
    told = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    devices.keep_programs()
    assert jax.config.jax_compilation_cache_dir == told
    assert not any(tmp_path.iterdir())
    limits = jax.config.jax_persistent_cache_min_compile_time_secs
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        devices.keep_programs()
        kept = Path(jax.config.jax_compilation_cache_dir)
        assert kept.parent == tmp_path / "metajax" / "programs"
        assert kept.is_dir()
    finally:
        jax.config.update("jax_compilation_cache_dir", told)
        jax.config.update("jax_compilation_cache_max_size", -1)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", limits)


def test_an_algorithm_brings_its_own_settings_and_flags_win():
    found = commands.resolve(
        sinusoid.EXPERIMENT, {"algorithm": "reptile", "num_steps": 3, "workdir": "w"}
    )
    settings = found.settings
    assert (settings.algorithm, settings.shots, settings.num_steps) == ("reptile", 50, 3)
    assert "shots" in found.overrides
    assert "num_meta_steps" not in found.overrides
    assert "--num_steps=3" in found.line
    assert "--workdir" not in found.line


def test_another_run_s_workdir_is_never_written_to(tmp_path):
    for arguments in ([], ["--algorithm=random"]):
        launch(navigation, *SMALL_RL, "--algorithm=random", f"--workdir={tmp_path}")
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(train.WorkdirError, match="seed: 0 there, 1 here"):
            launch(navigation, *SMALL_RL, *arguments, "--seed=1", f"--workdir={tmp_path}")
        after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert after == before


def test_a_platform_that_is_not_there_is_one_line():
    done = command("sinusoid", env={**os.environ, "JAX_PLATFORMS": "cuda"})
    assert done.returncode == 1
    assert "error: JAX_PLATFORMS=cuda asks for devices that JAX does not find" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_refused_command_leaves_its_workdir_to_another(tmp_path):
    (tmp_path / "data").mkdir()
    where = f"--data_dir={tmp_path / 'data'}", f"--workdir={tmp_path / 'run'}"
    for ways in (5, 4):
        with pytest.raises(UsageError, match="holds no folder with images"):
            launch(images, f"--ways={ways}", *where)
