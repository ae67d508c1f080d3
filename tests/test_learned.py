"""Meta-Curvature and ALFA, against their equations written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from tests.helpers import assert_close, meta_gradient, mlp_loss, mlp_params, regression

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def drawn(tree, scale=0.3):
    return jax.tree.map(lambda x: x + jnp.asarray(scale * RNG.normal(size=x.shape), x.dtype), tree)


def test_curvature_is_a_product_along_each_mode():
    shapes = {"conv": (2, 3, 4, 5), "dense": (4, 5), "bias": (5,), "temperature": ()}
    params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    grads = {name: jnp.asarray(RNG.normal(size=shape)) for name, shape in shapes.items()}
    optimizer = metajax.meta_curvature(0.1)
    start = optimizer.init(params)
    identity, _ = optimizer.make(start).update(grads, optax.EmptyState(), params)
    assert_close(identity, jax.tree.map(lambda g: -0.1 * g, grads))
    learned = drawn(start)
    found, _ = optimizer.make(learned).update(grads, optax.EmptyState(), params)
    by = jax.tree.map(np.asarray, learned)
    g = np.asarray(grads["conv"]).reshape(6, 4, 5)
    expected = np.zeros((6, 4, 5))
    for f, i, o in np.ndindex(6, 4, 5):
        total = 0.0
        for f2, i2, o2 in np.ndindex(6, 4, 5):
            total += (
                by["conv"]["window"][f, f2]
                * by["conv"]["in"][i, i2]
                * by["conv"]["out"][o, o2]
                * g[f2, i2, o2]
            )
        expected[f, i, o] = total
    assert_close(found["conv"], -0.1 * expected.reshape(2, 3, 4, 5), rtol=1e-4)
    dense = by["dense"]["in"] @ np.asarray(grads["dense"]) @ by["dense"]["out"].T
    assert_close(found["dense"], -0.1 * dense, rtol=1e-4)
    for name in ("bias", "temperature"):
        assert_close(found[name], -0.1 * by[name]["scale"] * grads[name], rtol=1e-4)


def alfa_by_hand(params, grads, learned, step):
    """Equations 5 and 6, in NumPy."""
    names = sorted(params)
    seen = np.array([np.mean(grads[n]) for n in names] + [np.mean(params[n]) for n in names])
    hidden = np.maximum(seen @ learned["hidden"] + learned["hidden_bias"], 0)
    generated = hidden @ learned["output"] + learned["output_bias"]
    alpha, beta = generated[: len(names)], generated[len(names) :]
    moved = {}
    for i, n in enumerate(names):
        decay = 1 - learned["decays"][step, i] * beta[i]
        moved[n] = decay * params[n] - learned["rates"][step, i] * alpha[i] * grads[n]
    return moved


def test_alfa_generates_step_sizes_and_decays():
    params = {"a": jnp.asarray(RNG.normal(size=(3, 2))), "b": jnp.asarray(RNG.normal(size=2))}
    optimizer = metajax.alfa(0.1, 2, weight_decay=0.5)
    start = optimizer.init(params)
    assert_close(start["decays"], np.full((2, 2), 0.05))
    learned = drawn(start)
    transform = optimizer.make(learned)
    state, found = transform.init(params), params
    expected = {n: np.asarray(x) for n, x in params.items()}
    by = jax.tree.map(np.asarray, learned)
    for step in range(3):
        grads = {n: jnp.asarray(RNG.normal(size=x.shape), x.dtype) for n, x in params.items()}
        updates, state = transform.update(grads, state, found)
        found = optax.apply_updates(found, updates)
        by_name = {n: np.asarray(g) for n, g in grads.items()}
        expected = alfa_by_hand(expected, by_name, by, min(step, 1))  # the last step repeats
        assert_close(found, expected, rtol=1e-4)


@pytest.mark.parametrize(
    "optimizer", [metajax.meta_curvature(0.05), metajax.alfa(0.05, 3)], ids=["curvature", "alfa"]
)
def test_they_start_as_sgd_and_every_engine_learns_them(optimizer):
    params, episode = mlp_params(dtype=jnp.float32), regression(dtype=jnp.float32)
    start = optimizer.init(params)
    adapt, sgd = (metajax.inner_loop(mlp_loss, o, 3) for o in (optimizer, optax.sgd(0.05)))
    adapted, _ = adapt.apply(metajax.MetaParams(params, start), episode.support, KEY)
    plain, _ = sgd.apply(metajax.MetaParams(params), episode.support, KEY)
    assert_close(adapted, plain, rtol=1e-3, atol=1e-3)  # up to the weight decay
    found = [
        meta_gradient(
            adapt.rebuild(meta_gradient=engine), metajax.query_loss(mlp_loss), params, episode
        )
        for engine in (metajax.second_order(), metajax.mixed_mode(), metajax.first_order())
    ]
    assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)
    for each in found:
        assert optax.tree.norm(each.inner) > 1e-4


@pytest.mark.parametrize(
    "make", [metajax.meta_curvature, lambda rate: metajax.alfa(rate, 3)], ids=["curvature", "alfa"]
)
def test_they_learn_for_the_adapting_parameters_only(make):
    def loss(params, batch, rng):
        return jnp.mean((batch @ params["body"] @ params["head"]) ** 2), {}

    optimizer = metajax.adapt_only(make(0.01), lambda path: path[0].key == "head")
    learner = metajax.maml(loss, optimizer, optax.adam(1e-3), num_steps=2)
    state = learner.init({"body": jnp.ones((2, 3)), "head": jnp.ones((3, 1))})
    batch = jnp.ones((4, 5, 2))
    state, metrics = jax.jit(learner.update)(state, metajax.Episode(batch, batch), KEY)
    adapted = learner.adapt(state, batch[0], KEY)
    assert_close(adapted["body"], state.meta_params.params["body"])
    assert metrics["support_loss"][1] < metrics["support_loss"][0]


def test_a_rate_that_is_none_is_refused():
    with pytest.raises(ValueError, match="meta_curvature: learning_rate must be"):
        metajax.meta_curvature(float("nan"))
    with pytest.raises(ValueError, match="alfa: num_steps must be"):
        metajax.alfa(0.1, 0)
