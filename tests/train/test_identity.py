"""Runs without a configuration: what makes them the same run, and what another."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import train
from metajax.tasks import FewShot, Sinusoid, StreamedFewShot
from tests.train.runs import assert_equal, fit, learner, loss, otherwise, own, run, validation


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run that was begun without a configuration."""
    workdir = tmp_path_factory.mktemp("begun")
    run(workdir)
    return workdir


def scaled(params, batch, rng):
    value, metrics = loss(params, batch, rng)
    return 2 * value, metrics


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
    with pytest.raises(train.WorkdirError, match=f"another run, which differs in: .*{named}") as no:
        run(begun, **changes)
    assert "\n" not in str(no.value)
    assert "config=" in str(no.value)


def test_the_same_run_is_returned_and_may_be_lengthened(tmp_path):
    first = run(tmp_path, own())
    assert_equal(run(tmp_path, own()).state, first.state)
    assert int(run(tmp_path, own(), num_meta_steps=25).state.step) == 25
    # Calls of another length, and more steps after a part of one.
    longer = run(tmp_path, own(), num_meta_steps=60, steps_per_call=20)
    assert_equal(longer.state, fit(own()).state)
    assert [line["step"] for line in train.read_metrics(tmp_path)] == [10, 20, 25, 40, 60]


IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 2, 2, 1)


@pytest.mark.parametrize("kind", [FewShot, StreamedFewShot])
def test_other_data_are_another_run(tmp_path, kind):
    def go(images):
        tasks = kind(images, ways=2, shots=1, queries=1)
        return run(tmp_path, own(), tasks=tasks)

    first = go(IMAGES)
    assert_equal(go(IMAGES.copy()).state, first.state)
    with pytest.raises(train.WorkdirError, match="differs in: tasks"):
        go(IMAGES + np.uint8(1))


def test_arrays_that_a_learner_closes_over_are_part_of_the_program(tmp_path):
    def go(sizes):
        return run(tmp_path, own(size=sizes), params=jnp.zeros(8))

    sizes = jnp.linspace(0.0, 1.0, 8)
    assert_equal(go(sizes).state, go(sizes.copy()).state)
    with pytest.raises(train.WorkdirError, match="differs in: program"):
        go(sizes.at[3].add(1e-3))


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
        fit(maml, validation=chosen, num_meta_steps=20, **changes)
        return len(found)

    assert traces(workdir=tmp_path / "a") == traces(workdir=tmp_path / "b", config={}) == traces()
