"""The launchers of meta-reinforcement learning: real runs, small ones."""

import dataclasses
import json
import subprocess
import sys

import jax
import mujoco
import numpy as np
import pytest
from PIL import Image
from xminigrid.benchmarks import save_bz2_pickle

from experiments import agents, cart_pole, locomotion, meta_rl, navigation, xland
from experiments.settings import UsageError
from metajax.rl.xland import find_object
from tests.experiments.launching import launch

SMALL_EVALUATION = ["--trajectories=3", "--eval_tasks=4", "--eval_trajectories=4"]
SMALL = [
    *SMALL_EVALUATION,
    "--num_meta_steps=2",
    "--meta_batch_size=2",
    "--steps_per_call=1",
    "--validate_every=2",
    "--checkpoint_every=2",
    "--validation_tasks=2",
    "--validation_steps=1",
]


def affordable(algorithm):
    """Reptile has all of a run but the trust region, which takes longest to compile."""
    return algorithm if algorithm == "reptile" else pytest.param(algorithm, marks=pytest.mark.slow)


@pytest.mark.parametrize("algorithm", [affordable(x) for x in agents.ALGORITHMS])
def test_navigation_runs_every_algorithm(tmp_path, algorithm):
    steps = 0 if algorithm in ("oracle", "rl2") else 1
    memory = ["--validation_steps=0", "--episodes=2"] if algorithm == "rl2" else []
    launch(
        navigation,
        *(SMALL_EVALUATION if algorithm == "random" else SMALL),
        "--num_devices=2",
        f"--algorithm={algorithm}",
        f"--num_eval_steps={steps}",
        *memory,
        f"--workdir={tmp_path}",
        *(["--curvature_stride=2"] if algorithm in meta_rl.TRUST_REGION else []),
    )
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["experiment"], result["algorithm"]) == ("navigation", algorithm)
    assert result["meta_steps"] == (0 if algorithm == "random" else 2)
    for row in (result["evaluation"]["return"], result["evaluation"]["random"]):
        assert row["num_tasks"] == 4
        assert len(row["mean"]) == len(row["ci95"]) == (2 if memory else steps + 1)
        assert (np.asarray(row["mean"]) < 0).all()
    for name in ("learning_curve.png", "trajectories.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    if algorithm == "random":
        return
    assert result["env_steps_per_second"] > 0
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    training = [x for x in lines if "train/return" in x]
    steps = result["config"]["num_steps"]
    assert steps == {"pretrain": 0, "oracle": 0, "rl2": 0}.get(algorithm, 2)
    assert all(len(x["train/return"]) == steps + 1 for x in training)
    expected = {"train/env_steps", "train/entropy", "train/failures", "train/objective"}
    if algorithm in ("maml", "fomaml", "pretrain", "oracle", "context"):
        expected |= {"train/kl", "train/line_search_steps", "train/accepted"}
    assert all(expected <= set(x) for x in training)
    assert any("validation/return" in x for x in lines)


def test_an_algorithm_of_other_experiments_is_refused(tmp_path):
    with pytest.raises(UsageError, match="algorithm=anil: value should be one of <maml"):
        launch(navigation, "--algorithm=anil", f"--workdir={tmp_path}")


def test_round_bodies_are_drawn_where_they_are():
    from experiments import animation

    model = mujoco.MjModel.from_xml_string("""
      <mujoco><worldbody><geom type="plane" size="1 1 1"/>
        <body><geom type="capsule" size="0.1 0.5"/>
          <body><geom type="sphere" size="0.2" pos="1 0 0"/></body>
        </body>
      </worldbody></mujoco>""")
    # The capsule's axis, z, is turned to -y; the sphere is moved up.
    turned = np.array([[0.5**0.5, 0.5**0.5, 0, 0], [1, 0, 0, 0]])[None]
    (capsule, thin), (sphere, thick) = animation.capsules(
        model, np.array([[[0, 0, 0], [0, 0, 2.0]]]), turned
    )
    np.testing.assert_allclose(capsule[0], [[0, 0.5, 0], [0, -0.5, 0]], atol=1e-12)
    np.testing.assert_allclose(sphere[0], [[1, 0, 2], [1, 0, 2]], atol=1e-12)
    assert (thin, thick) == (0.1, 0.2)


def test_the_console_shows_nothing_of_the_engines():
    code = (
        "from experiments import locomotion as l; l.make_env(l.FINN); "
        "from metajax.rl.locomotion import physics\n"
        "with l.without_notices(): physics('ant_dir')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_a_cheetah_is_trained_and_filmed(tmp_path):
    with jax.numpy_rank_promotion("allow"):  # Brax's own code
        launch(
            locomotion,
            *SMALL,
            "--preset=reduced",
            "--horizon=12",
            "--num_eval_steps=1",
            f"--workdir={tmp_path}",
        )
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["config"]["task"] == "cheetah_dir"
    assert np.isfinite(result["evaluation"]["return"]["mean"]).all()
    with Image.open(tmp_path / "before_after.gif") as film:
        assert film.n_frames >= 2


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["rl2", "reptile"])
def test_rooms(tmp_path, algorithm):
    steps = int(algorithm == "reptile")
    launch(
        xland,
        *SMALL,
        f"--algorithm={algorithm}",
        "--horizon=8",
        f"--num_steps={steps}",
        f"--validation_steps={steps}",
        f"--num_eval_steps={steps}",
        f"--workdir={tmp_path}",
    )
    rows = json.loads((tmp_path / "result.json").read_text())["evaluation"]
    assert len(rows["return"]["mean"]) == (4 if algorithm == "rl2" else 2)
    assert (np.asarray(rows["return"]["mean"]) >= 0).all()
    with Image.open(tmp_path / "rooms.gif") as film:
        assert film.n_frames > 4


def test_rule_sets_of_a_file_are_split(tmp_path):
    made = find_object().sample_tasks(jax.random.key(0), 50)
    names = {"goals": "goal", "rules": "rules", "init_tiles": "init_tiles"}
    sets = {new: np.asarray(made[old]) for new, old in names.items()}
    save_bz2_pickle(sets | {"num_rules": np.zeros(50)}, str(tmp_path / "sets"))
    settings = dataclasses.replace(xland.PRESETS["find_object"], benchmark=str(tmp_path / "sets"))
    training = xland.make_env(settings).sample_tasks(jax.random.key(1), 500)
    testing = xland.make_test_tasks(settings)(jax.random.key(1), 500)

    def distinct(tasks):
        return {tuple(np.ravel(x)) for x in np.asarray(tasks["init_tiles"])}

    assert (len(distinct(training)), len(distinct(testing))) == (40, 10)
    assert not distinct(training) & distinct(testing)
    missing = dataclasses.replace(settings, benchmark=str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="nowhere does not exist"):
        xland.make_env(missing)


@pytest.mark.slow
def test_one_step_finds_out_how_a_motor_is_wired(tmp_path):
    small = ["--num_meta_steps=20", "--eval_tasks=40", "--num_eval_steps=1", "--seed=1"]
    launch(cart_pole, *small, f"--workdir={tmp_path}")
    row = json.loads((tmp_path / "result.json").read_text())["evaluation"]["return"]
    assert row["mean"][1] - row["mean"][0] > 3 * max(row["ci95"])
    assert (tmp_path / "angles.png").exists()
