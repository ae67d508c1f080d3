"""How far runs are, from the files of their working directories."""

import json
import os
import sys
import time

import pytest

from experiments import status


def make_run(folder, lines=(), *, steps=100, age=0.0, finished=False, end=""):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"num_meta_steps": steps}))
    if lines:
        path = folder / "metrics.jsonl"
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + end)
        os.utime(path, (time.time() - age,) * 2)
    if finished:
        (folder / "result.json").write_text("{}")
    return folder


def test_a_run_going_on(tmp_path):
    lines = [
        {"step": 0, "validation/accuracy": 0.2, "validation/accuracies": [0.1, 0.2]},
        {"step": 10, "seconds": 30.0, "train/objective": 1.0},
        {"step": 20, "seconds": 35.0, "train/objective": 0.9},
        {"step": 20, "validation/accuracy": 0.75, "validation/accuracies": [0.2, 0.75]},
        {"step": 30, "seconds": 40.0, "train/objective": 0.8},
        {"step": 30, "validation/accuracy": 0.5, "validation/accuracies": [0.2, 0.5]},
    ]
    run = make_run(tmp_path / "run", lines, age=90, end='{"step": 40, "sec')
    before = {path: path.read_bytes() for path in run.iterdir()}
    found = status.read(run)
    assert (found.step, found.steps, found.finished) == (30, 100, False)
    assert found.rate == pytest.approx(2.0)
    assert found.left == pytest.approx(35.0)
    assert found.best == "accuracy 0.75 at 20"
    assert found.age == pytest.approx(90, abs=5)
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_the_rate_is_that_of_the_last_lines(tmp_path):
    slow = [{"step": step, "seconds": 100.0 * step} for step in range(1, 50)]
    fast = [{"step": 49 + i, "seconds": 4900.0 + 0.5 * i} for i in range(1, status.RECENT + 1)]
    assert status.read(make_run(tmp_path / "run", [*slow, *fast])).rate == pytest.approx(2.0)


def test_less_loss_is_better_and_what_is_not_finite_is_no_best(tmp_path):
    values = [3.0, 0.5, float("nan"), 0.7]
    lines = [{"step": i, "validation/mse": value} for i, value in enumerate(values)]
    assert status.read(make_run(tmp_path / "run", lines)).best == "mse 0.5 at 1"


def test_command(tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "runs" / "maml" / "seed0", [{"step": 100, "seconds": 1.0}], finished=True)
    make_run(tmp_path / "runs" / "begun", steps=7)
    damaged = make_run(tmp_path / "runs" / "damaged")
    (damaged / "config.json").write_text("{")
    (tmp_path / "runs" / "no_run").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["status"])
    status.main()
    header, begun, broken, finished = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["run", "step", "of"]
    assert begun.split()[:3] == ["begun", "0", "7"]
    assert broken.startswith("damaged")
    assert "is not valid JSON" in broken
    assert finished.split()[:4] == ["maml/seed0", "100", "100", "finished"]


@pytest.mark.parametrize(
    ("folder", "reason"), [("nowhere", "is no folder"), ("", "there is no run")]
)
def test_mistakes(tmp_path, monkeypatch, folder, reason):
    monkeypatch.setattr(sys, "argv", ["status", str(tmp_path / folder)])
    with pytest.raises(SystemExit, match=f"{reason}.*: name a working directory"):
        status.main()
