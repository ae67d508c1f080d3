"""`--weights`: runs that start from what another run has learned."""

import hashlib
import json

import numpy as np
import pytest

from experiments import navigation, sinusoid
from experiments.settings import UsageError
from tests.experiments.launching import SMALL, launch

SMALL_RL = ["--meta_batch_size=2", "--eval_tasks=2", "--eval_trajectories=2", "--num_eval_steps=1"]


def read(workdir):
    return json.loads((workdir / "result.json").read_text())


def rows(workdir, name="K=10"):
    return np.asarray(read(workdir)["evaluation"]["mse"][name]["mean"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    launch(sinusoid, *SMALL, f"--workdir={workdir}")
    return workdir


def test_weights_are_evaluated_as_they_are(trained, tmp_path):
    again = [word for word in SMALL if "num_meta_steps" not in word]
    launch(sinusoid, *again, "--num_meta_steps=0", f"--weights={trained}", f"--workdir={tmp_path}")
    np.testing.assert_array_equal(rows(tmp_path), rows(trained))
    result = read(tmp_path)
    digest = hashlib.sha256((trained / "weights.safetensors").read_bytes()).hexdigest()
    assert result["meta_steps"] == 0
    assert result["started_from"] == {"weights": str(trained), "sha256": digest}
    assert result["weights"]["sha256"] == digest
    assert "--weights=" in result["command"]
    assert not (tmp_path / "training.png").exists()
    # A later evaluation starts there too.
    launch(sinusoid, "--mode=eval", "--eval_tasks=5", f"--workdir={tmp_path}")


@pytest.mark.slow
def test_training_goes_on_from_weights(trained, tmp_path):
    start = f"--weights={trained / 'weights.safetensors'}"
    still = ["--outer_learning_rate=0", "--algorithm=fomaml"]
    launch(sinusoid, *SMALL, start, *still, f"--workdir={tmp_path / 'still'}")
    np.testing.assert_array_equal(rows(tmp_path / "still"), rows(trained))
    launch(sinusoid, *SMALL, start, f"--workdir={tmp_path / 'on'}")
    assert not np.array_equal(rows(tmp_path / "on"), rows(trained))
    assert read(tmp_path / "on")["meta_steps"] == 4
    config = json.loads((tmp_path / "on" / "config.json").read_text())
    assert config["weights"] == start.removeprefix("--weights=")
    assert "weights" not in json.loads((trained / "config.json").read_text())


@pytest.mark.slow
def test_a_policy_is_evaluated_as_it_is(tmp_path):
    launch(
        navigation,
        *SMALL_RL,
        "--num_meta_steps=1",
        "--trajectories=2",
        "--validation_tasks=2",
        "--steps_per_call=1",
        "--validate_every=1",
        "--checkpoint_every=1",
        f"--workdir={tmp_path / 'trained'}",
    )
    launch(
        navigation,
        *SMALL_RL,
        "--num_meta_steps=0",
        f"--weights={tmp_path / 'trained'}",
        f"--workdir={tmp_path / 'again'}",
    )
    first, again = (read(tmp_path / name)["evaluation"] for name in ("trained", "again"))
    np.testing.assert_allclose(again["return"]["mean"], first["return"]["mean"], rtol=1e-5)
    np.testing.assert_allclose(again["random"]["mean"], first["random"]["mean"], rtol=1e-5)


def test_weights_that_cannot_be_used(trained, tmp_path):
    def refuses(message, *arguments, module=sinusoid):
        with pytest.raises(UsageError, match=message):
            launch(module, *arguments, f"--workdir={tmp_path}")
        assert not (tmp_path / "config.json").exists()

    refuses("--num_meta_steps=0 evaluates --weights: name them", "--num_meta_steps=0")
    refuses("there are no weights in", f"--weights={tmp_path / 'nowhere'}")
    refuses("is of another model: ", f"--weights={trained}", module=navigation)
    learned = ["--algorithm=meta_sgd", "--num_meta_steps=0", f"--weights={trained}"]
    refuses("meta_sgd learns more than the parameters", *learned)
