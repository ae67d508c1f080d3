"""The training loop: many meta-steps in one call are the single updates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from metajax import train
from metajax.tasks import FewShot, Sinusoid, meta_batch
from tests.train.runs import SETTINGS, fit, initial, learner, own


def test_many_steps_in_one_call_are_the_single_updates():
    result = fit(num_meta_steps=10)
    one, state = learner(), learner().init(initial())
    key = jax.random.split(SETTINGS["key"])[0]
    update = jax.jit(one.update)
    for step in range(10):
        task_rng, update_rng = jax.random.split(jax.random.fold_in(key, step))
        state, _ = update(state, meta_batch(Sinusoid(), 3, task_rng), update_rng)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), result.state, state
    )


def test_the_caller_keeps_its_parameters():
    params = initial()
    train.fit(own(), params, Sinusoid(), **SETTINGS)
    assert np.isfinite(params["w"]).all()  # a donated buffer would raise


def test_tasks_are_an_argument_not_a_constant():
    # Were the images compiled in, the executables of two data sets could not be one.
    traces = []

    def counting(params, batch, rng):
        traces.append(1)
        x, y = batch
        return jnp.mean((x.mean((1, 2, 3)) * params - y) ** 2), {}

    images = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 2, 2, 1)
    fomaml = metajax.fomaml(counting, optax.sgd(0.1), optax.sgd(0.1))
    tasks = FewShot(images, ways=2, shots=1, queries=1)
    train.fit(fomaml, jnp.ones(()), tasks, **{**SETTINGS, "num_meta_steps": 30})
    once = len(traces)
    train.fit(fomaml, jnp.ones(()), tasks, **{**SETTINGS, "num_meta_steps": 10})
    assert len(traces) == 2 * once  # the number of calls of one run adds no trace
    train.fit(fomaml, jnp.ones(()), tasks, **{**SETTINGS, "num_meta_steps": 25})
    assert len(traces) == 3 * once  # nor does another length of calls
