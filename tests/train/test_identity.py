"""Which runs a working directory takes for the same, with and without a configuration."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import train
from metajax.tasks import FewShot, Sinusoid, StreamedFewShot
from tests.train.runs import SETTINGS, assert_equal, fit, initial, learner, loss, validation

SHORT = {**SETTINGS, "num_meta_steps": 20}


def run(workdir, *, learner_=None, params=None, tasks=None, **changes):
    return train.fit(
        learner_ or learner(),
        initial() if params is None else params,
        tasks or Sinusoid(),
        workdir=workdir,
        **{**SHORT, **changes},
    )


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run that was begun without a configuration."""
    workdir = tmp_path_factory.mktemp("begun")
    run(workdir)
    return workdir


def scaled(params, batch, rng):
    value, metrics = loss(params, batch, rng)
    return 2 * value, metrics


def otherwise(scale):
    return {**initial(), "b": jnp.full(8, scale)}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learner_": learner(optax.adam(2e-3))}, "program"),
        ({"learner_": metajax.maml(loss, optax.sgd(0.02), optax.adam(1e-3), num_steps=2)}, "prog"),
        ({"learner_": metajax.maml(scaled, optax.sgd(0.01), optax.adam(1e-3), num_steps=2)}, "pr"),
        ({"meta_batch_size": 4}, "program"),
        ({"params": otherwise(1e-7)}, "initial state"),
        ({"key": jax.random.key(2)}, "key"),
        ({"tasks": Sinusoid(amplitude=(0.1, 4.0))}, "p"),
        ({"validation": validation()}, "validation"),
    ],
)
def test_another_run_is_refused(begun, changes, named):
    with pytest.raises(train.WorkdirError, match=f"another run, of which differs: .*{named}") as no:
        run(begun, **changes)
    assert "\n" not in str(no.value)
    assert "config=" in str(no.value)


def test_the_same_run_is_returned_and_may_be_lengthened(tmp_path):
    first = run(tmp_path)
    assert_equal(run(tmp_path).state, first.state)
    longer = run(tmp_path, num_meta_steps=35)
    assert int(longer.state.step) == 35
    # Other boundaries of calls, and more steps after a part of one.
    assert_equal(run(tmp_path, num_meta_steps=60, steps_per_call=20).state, fit().state)


@pytest.mark.parametrize("config", [None, {}, {"num_meta_steps": 60}])
def test_a_run_cannot_be_shortened(tmp_path, config):
    run(tmp_path, num_meta_steps=40, config=config)
    with pytest.raises(train.WorkdirError, match=r"a run of 40 meta-steps, more than .*=20:"):
        run(tmp_path, config=config)


IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 2, 2, 1)


def mean_image(params, batch, rng):
    x, y = batch
    return jnp.mean((x.mean((1, 2, 3)) * params - y) ** 2), {}


@pytest.mark.parametrize("kind", [FewShot, StreamedFewShot])
def test_other_data_are_another_run(tmp_path, kind):
    def go(images):
        tasks = kind(images, ways=2, shots=1, queries=1)
        fomaml = metajax.fomaml(mean_image, optax.sgd(0.1), optax.sgd(0.1))
        return run(tmp_path, learner_=fomaml, params=jnp.ones(()), tasks=tasks)

    first = go(IMAGES)
    assert_equal(go(IMAGES.copy()).state, first.state)
    with pytest.raises(train.WorkdirError, match="of which differs: tasks"):
        go(IMAGES + np.uint8(1))


def test_arrays_that_a_loss_closes_over_are_part_of_the_program(tmp_path):
    def shifted(by):
        def shifted_loss(params, batch, rng):
            x, y = batch
            return loss(params, (x + by[None], y), rng)

        return metajax.fomaml(shifted_loss, optax.sgd(0.01), optax.sgd(0.1))

    run(tmp_path, learner_=shifted(jnp.array([0.5])))
    run(tmp_path, learner_=shifted(jnp.array([0.5])))
    with pytest.raises(train.WorkdirError, match="of which differs: program"):
        run(tmp_path, learner_=shifted(jnp.array([0.25])))


def test_a_run_without_a_checkpoint_holds_nothing_up(tmp_path):
    with pytest.raises(train.NonFiniteError):
        run(tmp_path, learner_=learner(optax.sgd(jnp.inf)))
    assert int(run(tmp_path).state.step) == 20
    assert [line["step"] for line in train.read_metrics(tmp_path)] == [10, 20]


def test_a_run_of_before_digests_is_continued_and_gets_some(tmp_path):
    run(tmp_path)
    digests = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text("{}\n")
    run(tmp_path, num_meta_steps=30)
    assert (tmp_path / "config.json").read_text() == digests


def test_with_and_without_a_configuration_are_two_runs(tmp_path, begun):
    with pytest.raises(train.WorkdirError, match="begun without config=: leave it out"):
        run(begun, config={"seed": 0})
    run(tmp_path, config={"seed": 0})
    with pytest.raises(train.WorkdirError, match="begun with config=: pass its configuration"):
        run(tmp_path)


def test_a_configuration_is_all_that_identifies_its_run(tmp_path):
    first = run(tmp_path, config={"seed": 0})
    again = run(
        tmp_path, config={"seed": 0}, learner_=learner(optax.adam(1.0)), params=otherwise(1.0)
    )
    assert_equal(first.state, again.state)


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from tests.train.runs import fit, validation
fit(workdir={workdir!r}, validation=validation(), num_meta_steps=20)
"""


def test_digests_are_the_same_in_every_process(tmp_path):
    run(tmp_path / "here", validation=validation())
    script = SCRIPT.format(root=str(Path(__file__).parents[2]), workdir=str(tmp_path / "there"))
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    here, there = (train.read_config(tmp_path / name) for name in ("here", "there"))
    assert here == there
    assert here["digests"].keys() == {"program", "initial state", "key", "tasks", "validation"}


def test_digests_cost_no_trace(tmp_path):
    def traces(**changes):
        found = []

        def counted(params, batch, rng):
            found.append(1)
            return loss(params, batch, rng)

        maml = metajax.maml(counted, optax.sgd(0.01), optax.adam(1e-3), num_steps=2)
        adapt = metajax.inner_loop(counted, optax.sgd(0.01), 2)

        def measure(state, tasks, rng):
            episode = tasks.sample(rng)
            adapted, _ = adapt.apply(state.meta_params, episode.support, rng)
            return {"loss": counted(adapted, episode.query, rng)[0]}

        chosen = train.Validation(Sinusoid(), measure, "loss", "min")
        train.fit(maml, initial(), Sinusoid(), validation=chosen, **{**SHORT, **changes})
        return len(found)

    assert traces(workdir=tmp_path / "a") == traces(workdir=tmp_path / "b", config={}) == traces()
