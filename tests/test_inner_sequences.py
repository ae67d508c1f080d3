"""Recurrent networks and attention in the inner loop: exact engines against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from tests.helpers import assert_close, meta_gradient

SIZE, TIME = 4, 6


def lstm(params, x):
    """The last output of an LSTM on sequences `[examples, time, 1]`."""

    def one(sequence):
        def body(state, value):
            hidden, cell = state
            gates = jnp.concatenate([value, hidden]) @ params["gates"]
            enter, forget, write, leave = jnp.split(gates, 4)
            cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(write)
            hidden = jax.nn.sigmoid(leave) * jnp.tanh(cell)
            return (hidden, cell), ()

        start = jnp.zeros(SIZE, x.dtype), jnp.zeros(SIZE, x.dtype)
        return jax.lax.scan(body, start, sequence)[0][0]

    return jax.vmap(one)(x) @ params["out"]


def attention(params, x):
    """Causal attention on sequences `[examples, time, 1]`, read at the last place."""
    query, key, value = jnp.split(x @ params["qkv"], 3, axis=-1)
    scores = jnp.einsum("etd,esd->ets", query, key) / SIZE**0.5
    causal = jnp.broadcast_to(jnp.tril(jnp.ones((TIME, TIME), bool)), scores.shape)
    weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf))
    return jnp.tanh(weights @ value)[:, -1] @ params["out"]


SHAPES = {
    lstm: {"gates": (1 + SIZE, 4 * SIZE), "out": (SIZE, 1)},
    attention: {"qkv": (1, 3 * SIZE), "out": (SIZE, 1)},
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("model", SHAPES, ids=lambda model: model.__name__)
def test_the_meta_gradient_of_sequences_equals_finite_differences(model):
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in SHAPES[model].items()}
    x = jnp.asarray(rng.normal(size=(8, TIME, 1)))
    y = jnp.sum(x, axis=1)
    episode = metajax.Episode((x[:4], y[:4]), (x[4:], y[4:]))
    loss = metajax.squared_error(model)
    objective = metajax.query_loss(loss)

    def adapt(engine):
        return metajax.inner_loop(loss, optax.sgd(0.1), 2, meta_gradient=engine)

    @jax.jit
    def value(params):
        meta_params = metajax.MetaParams(params)
        return objective(adapt(metajax.second_order()), meta_params, episode, jax.random.key(0))[0]

    direction = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)
    h = 1e-5
    ahead, behind = (
        value(jax.tree.map(lambda p, d, s=s: p + s * d, params, direction)) for s in (h, -h)
    )
    engines = metajax.second_order(), metajax.second_order(remat=True), metajax.mixed_mode()
    found = [meta_gradient(adapt(e), objective, params, episode).params for e in engines]
    along = sum(jnp.vdot(found[0][name], direction[name]) for name in params)
    assert_close(along, (ahead - behind) / (2 * h), rtol=1e-6)
    for other in found[1:]:
        assert_close(other, found[0], rtol=1e-9)
    first = meta_gradient(adapt(metajax.first_order()), objective, params, episode).params
    assert abs(sum(jnp.vdot(first[n] - found[0][n], direction[n]) for n in params)) > 1e-3
