"""Figures 3 and 4 of Nichol 2018: which runs they are made of, and small ones of each."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import reptile_batches, reptile_gradients, reptile_runs
from tests.experiments.launching import launch

SMALL = [
    "--num_meta_steps=2",
    "--steps_per_call=1",
    "--validate_every=1",
    "--checkpoint_every=2",
    "--validation_tasks=2",
    "--eval_tasks=2",
    "--network=mlp",
]


def read(workdir):
    return json.loads((workdir / "result.json").read_text())


def test_the_combinations_of_figure_3():
    weights = reptile_gradients.combinations()
    assert len(weights) == 10
    assert weights["g3"] == (0.0, 0.0, 1.0)
    assert weights["g1+g2"] == (1.0, 1.0)
    assert weights["(g1+g2+g3+g4) div 4"] == (0.25,) * 4


@pytest.mark.slow
@pytest.mark.usefixtures("random_images")
def test_inner_gradients_are_drawn_and_a_finished_run_is_not_repeated(
    tmp_path, monkeypatch, capsys
):
    some = {"g1": (1.0,), "g1+g2": (1.0, 1.0)}
    monkeypatch.setattr(reptile_gradients, "combinations", lambda: some)
    for _ in range(2):
        launch(reptile_gradients, *SMALL, f"--workdir={tmp_path}")
    assert capsys.readouterr().out.count("1 of 2: g1") == 1
    found = read(tmp_path)["evaluation"]
    assert list(found) == list(some)
    for run in found.values():
        assert [step for step, _ in run["curve"]] == [1, 2]
        assert 0 <= run["accuracy"] <= 1
    assert (tmp_path / "gradients.png").read_bytes().startswith(b"\x89PNG")
    assert read(tmp_path / "g1+g2")["config"]["num_steps"] == 2
    launch(reptile_gradients, *SMALL, "--num_meta_steps=4", f"--workdir={tmp_path}")
    assert "2 of 2: g1+g2" in capsys.readouterr().out
    found = read(tmp_path)["evaluation"]
    assert [step for step, _ in found["g1+g2"]["curve"]] == [1, 2, 3, 4]


@pytest.mark.parametrize("panel", reptile_batches.TABLE_6)
def test_the_runs_of_figure_4_keep_to_table_6(panel):
    points = reptile_batches.runs(panel)
    for method, runs in points.items():
        for value, run in runs.items():
            settings = dataclasses.replace(reptile_runs.SETTINGS, **run.changes)
            examples = 5 * settings.train_shots
            assert examples + 5 * settings.queries == 100
            wanted = value if panel == "inner_batch" else 25 if panel == "inner_steps" else 100
            assert settings.inner_batch == min(wanted, examples)
            np.testing.assert_allclose(settings.inner_learning_rate, 0.003 * settings.inner_batch)
            assert settings.num_steps == (value if panel == "inner_steps" else 4)
            assert settings.tail == (method.split()[0] if "tail" in method else "none")


@pytest.mark.slow
@pytest.mark.usefixtures("random_images")
def test_mini_batches_are_drawn(tmp_path, monkeypatch):
    panel = reptile_batches.TABLE_6["inner_steps"]._replace(values=(2,))
    monkeypatch.setitem(reptile_batches.TABLE_6, "inner_steps", panel)
    launch(reptile_batches, *SMALL, "--panel=inner_steps", f"--workdir={tmp_path}")
    (curves,) = read(tmp_path)["curves"].values()
    assert list(curves) == list(reptile_batches.METHODS)
    assert all(x == 2 and 0 <= y <= 1 for ((x, y),) in curves.values())
    assert (tmp_path / "batches.png").read_bytes().startswith(b"\x89PNG")
