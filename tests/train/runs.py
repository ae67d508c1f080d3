"""Short runs on sinusoids, which the tests of training share."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from metajax import train
from metajax.tasks import Sinusoid, meta_batch
from metajax.train.writers import MetricWriter

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


def fit(learner_=None, *, params=None, tasks=None, **changes):
    return train.fit(
        learner_ or learner(),
        initial() if params is None else params,
        tasks or Sinusoid(),
        **{**SETTINGS, **changes},
    )


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def own(metrics=lambda step: {}, *, size=1.0, bad_step=10**6, inner_state=()):
    """A learner written by hand, which compiles at once: it moves all parameters by `size`.

    Args:
      metrics: of a meta-step, `step -> dict`.
      size: of a step, which is infinite from the meta-update `bad_step` on.
      inner_state: what it starts with beside the parameters.
    """

    def init(params):
        zero = jnp.zeros((), jnp.int32)
        return metajax.MetaState(metajax.MetaParams(params), (), inner_state, zero)

    def update(state, episodes, rng):
        by = jnp.where(state.step + 1 >= bad_step, jnp.inf, size)
        moved = jax.tree.map(lambda x: x + by, state.meta_params)
        return state._replace(meta_params=moved, step=state.step + 1), metrics(state.step)

    return metajax.MetaLearner(init, lambda state, support, rng: state.meta_params.params, update)


def run(workdir, learner_=None, **changes):
    """A run of 20 meta-steps in a working directory."""
    return fit(learner_, workdir=workdir, **{"num_meta_steps": 20, **changes})


def otherwise(scale):
    """Other initial parameters."""
    return {**initial(), "b": jnp.full(8, scale)}


def at_step(monkeypatch, step, act):
    """Calls `act` when the metrics of a meta-step are to be written."""
    write = MetricWriter.write

    def acting(self, at, metrics):
        if at == step:
            act()
        write(self, at, metrics)

    monkeypatch.setattr(MetricWriter, "write", acting)


def assert_same_run(one, other):
    assert_equal((one.state, one.best), (other.state, other.best))
    assert (one.best_step, one.best_metrics) == (other.best_step, other.best_metrics)


def lines(workdir):
    """The lines of `metrics.jsonl`, without the seconds."""
    return [{**line, "seconds": 0} for line in train.read_metrics(workdir)]


def listed(workdir):
    """The steps of the checkpoints."""
    path = workdir / "checkpoints"
    return [name for name in os.listdir(path) if name.isdigit()] if path.exists() else []
