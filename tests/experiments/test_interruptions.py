"""Launchers that are interrupted: they stop, continue, and leave no half of a result."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import sinusoid
from metajax import train
from tests.experiments.launching import SMALL, launch

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_an_interrupted_command_continues(tmp_path):
    arguments = [
        sys.executable,
        "-m",
        "experiments.sinusoid",
        "--num_meta_steps=60",
        "--steps_per_call=2",
        "--validate_every=60",
        "--checkpoint_every=2",
        "--eval_tasks=3",
        "--num_eval_steps=1",
        "--validation_steps=1",
        f"--workdir={tmp_path}",
    ]
    process = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "checkpoints" / "4").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"repeat the command with --workdir={tmp_path} to continue" in output
    assert not (tmp_path / "result.json").exists()
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["meta_steps"] == 60


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_while_a_baseline_trains_stops_the_run(tmp_path, monkeypatch, capsys, number):
    fit, calls = train.fit, []

    def signalled(*args, **kwargs):
        calls.append(kwargs.get("workdir"))
        if calls[-1] is not None:  # the run itself
            return fit(*args, **kwargs)
        return fit(*args, **kwargs)._replace(stopped_by=number.name)

    arguments = (*SMALL, f"--workdir={tmp_path}")
    with monkeypatch.context() as patch:
        patch.setattr(train, "fit", signalled)
        assert launch(sinusoid, *arguments) == 128 + number
    assert len(calls) == 2
    assert f"stopped by {number.name}" in capsys.readouterr().out
    assert not (tmp_path / "result.json").exists()
    assert launch(sinusoid, *arguments) == 0
    assert not (tmp_path / "partial").exists()


def test_nothing_half_done_is_left_of_a_result(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    arguments = (*SMALL, f"--workdir={tmp_path}")
    with monkeypatch.context() as patch:
        patch.setattr(train, "write_json", killed)
        patch.setattr(train, "claim", lambda workdir, config: None)
        with pytest.raises(KeyboardInterrupt):
            launch(sinusoid, *arguments)
    assert not [*tmp_path.glob("partial")] + [*tmp_path.glob("*.safetensors")]
