"""What the tests of the core share."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax


def meta_gradient(adapt, objective, params, episode, rng=None, inner_state=()):
    """The meta-gradient of one task, as `MetaParams`, compiled."""
    inner, _ = adapt.init(params)
    rng = jax.random.key(0) if rng is None else rng

    @jax.jit
    @jax.grad
    def gradient(meta_params, episode, rng, inner_state):
        return objective(adapt, meta_params, episode, rng, inner_state=inner_state)[0]

    return gradient(metajax.MetaParams(params, inner), episode, rng, inner_state)


# An outer optimizer whose state after an update is the gradient that it was given.
RECORDER = optax.trace(decay=0.0)


def recorded_gradient(learner, params, episodes, rng=None):
    """The meta-gradient over a meta-batch that a learner hands to its optimizer, `RECORDER`."""
    rng = jax.random.key(0) if rng is None else rng
    state, _ = jax.jit(learner.update)(learner.init(params), episodes, rng)
    return state.opt_state.trace


def mlp_params(seed=0, sizes=(2, 5, 1), dtype=None):
    rng = np.random.default_rng(seed)
    return [
        {
            "w": jnp.asarray(rng.normal(size=s) * 0.7, dtype),
            "b": jnp.asarray(rng.normal(size=s[1:]) * 0.1, dtype),
        }
        for s in itertools.pairwise(sizes)
    ]


def mlp(params, x):
    for i, layer in enumerate(params):
        x = x @ layer["w"] + layer["b"][None]
        x = jnp.tanh(x) if i < len(params) - 1 else x
    return x


def mlp_loss(params, batch, rng):
    x, y = batch
    return jnp.mean((mlp(params, x) - y) ** 2), {"mean": jnp.mean(x)}


def regression(seed=0, tasks=None, shots=6, features=2, dtype=None):
    """An episode of random regression data; with a task axis if `tasks` is given."""
    rng = np.random.default_rng(seed)
    lead = () if tasks is None else (tasks,)

    def batch():
        x = rng.normal(size=(*lead, shots, features))
        return jnp.asarray(x, dtype), jnp.asarray(np.sin(x.sum(-1, keepdims=True)) * 2, dtype)

    return metajax.Episode(batch(), batch())


def assert_close(a, b, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def distance(a, b):
    """The largest absolute difference between two trees."""
    return max(
        float(jnp.max(jnp.abs(x - y)))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def relu_loss(params, x, rng):
    return jnp.mean((jax.nn.relu(x @ params["w"]) @ params["v"]) ** 2), {}


# Its second unit is dead.
DEAD = {"w": jnp.asarray([[1.0, -100.0]]), "v": jnp.ones((2, 1))}
