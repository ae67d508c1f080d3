"""Short runs on sinusoids, which the tests of training share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from metajax import train
from metajax.tasks import Sinusoid, meta_batch

SETTINGS = {
    "key": jax.random.key(1),
    "num_meta_steps": 60,
    "meta_batch_size": 3,
    "steps_per_call": 10,
    "checkpoint_every": 20,
    "validate_every": 20,
    "show_progress": False,
}


def apply(params, x):
    return jnp.tanh(x @ params["w"] + params["b"][None]) @ params["v"]


def loss(params, batch, rng):
    x, y = batch
    return jnp.mean((apply(params, x) - y) ** 2), {"bias": params["b"][0]}


def initial():
    rng = np.random.default_rng(0)
    return {
        "w": jnp.asarray(rng.normal(size=(1, 8)), jnp.float32),
        "b": jnp.zeros(8),
        "v": jnp.asarray(rng.normal(size=(8, 1)), jnp.float32),
    }


def learner(outer=None):
    return metajax.maml(loss, optax.sgd(0.01), outer or optax.adam(1e-3), num_steps=2)


def validation(mode="min"):
    adapt = metajax.inner_loop(loss, optax.sgd(0.01), 2)

    def measure(state, tasks, rng):
        task_rng, rng = jax.random.split(rng)
        scores = metajax.evaluate(
            adapt, metajax.mse(apply), state, meta_batch(tasks, 5, task_rng), rng
        )
        return {"mse": scores["mean"][-1]}

    return train.Validation(Sinusoid(), measure, "mse", mode)


def fit(learner_=None, **changes):
    return train.fit(learner_ or learner(), initial(), Sinusoid(), **{**SETTINGS, **changes})


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def fail_from(step):
    """An outer optimizer that breaks the parameters after `step` updates."""

    def update(updates, count, params=None):
        bad = jnp.where(count >= step, jnp.nan, 0.0)
        return jax.tree.map(lambda u: u + bad, updates), count + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)
