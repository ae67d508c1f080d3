"""Scores over many compiled calls: the tasks, the pooling and the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import train

KEY = jax.random.key(0)


def linear(params, x):
    return x * params


LOSS = metajax.squared_error(linear)
LEARNER = metajax.maml(LOSS, optax.sgd(0.01), optax.adam(1e-3))
ADAPT = LEARNER.inner.rebuild(num_steps=2)
METRIC = {"mse": metajax.mse(linear), "last": metajax.AtSteps(metajax.mse(linear), (2,))}
TASKS = metajax.tasks.Sinusoid()
STATE = LEARNER.init(jnp.ones(()))


def by_hand(count, key):
    """The errors of each task, `[tasks, steps + 1]`."""
    task_rng, _ = jax.random.split(key)
    episodes = metajax.tasks.meta_batch(TASKS, count, task_rng)
    errors = []
    for i in range(count):
        one = jax.tree.map(lambda x, i=i: x[i], episodes)
        phi, row = jnp.ones(()), []
        for step in range(3):
            row.append(jnp.mean((linear(phi, one.query[0]) - one.query[1]) ** 2))
            if step < 2:
                phi = phi - 0.01 * jax.grad(lambda p, one=one: LOSS(p, one.support, KEY)[0])(phi)
        errors.append(row)
    return np.asarray(errors)


def test_one_call_scores_all_tasks():
    scores = train.scorer(ADAPT, METRIC)(STATE, TASKS, 5, KEY)
    errors = by_hand(5, KEY)
    np.testing.assert_allclose(scores["mean"]["mse"], errors.mean(0), rtol=1e-5)
    np.testing.assert_allclose(scores["mean"]["last"], errors[:, 2:].mean(0), rtol=1e-5)
    np.testing.assert_allclose(scores["ci95"]["mse"], 1.96 * errors.std(0) / 5**0.5, rtol=1e-4)
    assert scores["num_tasks"] == 5


@pytest.mark.parametrize("mesh", [None, 2])
def test_several_calls_draw_other_tasks_and_are_pooled(mesh):
    devices = None if mesh is None else metajax.task_mesh(mesh)
    # With two devices a call takes 4 tasks, a multiple of their number.
    score = train.scorer(ADAPT, METRIC, tasks_per_call=4 if mesh is None else 3, mesh=devices)
    scores = score(STATE, TASKS, 10, KEY)
    calls = [by_hand(n, jax.random.fold_in(KEY, i)) for i, n in enumerate((4, 4, 2))]
    errors = np.concatenate(calls)
    np.testing.assert_allclose(scores["mean"]["mse"], errors.mean(0), rtol=1e-5)
    np.testing.assert_allclose(scores["ci95"]["mse"], 1.96 * errors.std(0) / 10**0.5, rtol=1e-4)
    medians = np.quantile(errors, 0.5, axis=0, method="nearest")
    np.testing.assert_allclose(scores["quantiles"][0.5]["mse"], medians, rtol=1e-5)
    assert scores["num_tasks"] == 10


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (
            lambda: train.scorer(ADAPT, METRIC, tasks_per_call=0),
            "tasks_per_call must be a positive",
        ),
        (lambda: train.scorer(ADAPT, METRIC)(STATE, TASKS, 0, KEY), "num_tasks must be a positive"),
        (lambda: train.scorer(ADAPT, METRIC)(STATE, None, 2, KEY), "the tasks must be a function"),
        (lambda: train.scorer(ADAPT, METRIC, mesh=5), "scorer: mesh must be a jax.sharding.Mesh"),
        (
            lambda: train.scorer(ADAPT, METRIC, mesh=jax.make_mesh((1,), ("x",))),
            "scorer: mesh must have an axis 'tasks'",
        ),
        (
            lambda: train.scorer(LEARNER, METRIC)(STATE, TASKS, 2, KEY),
            "adapt must be of type Adapt",
        ),
    ],
)
def test_misuse(score, message):
    with pytest.raises(ValueError, match=message):
        score()
