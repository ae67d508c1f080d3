"""Implicit meta-gradients: what they refuse, and parameters of which a part adapts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from tests.helpers import (
    DEAD,
    assert_close,
    meta_gradient,
    relu_loss,
)


def implicit_loop(loss, optimizer, **kwargs):
    return metajax.inner_loop(
        loss, optimizer, 300, meta_gradient=metajax.implicit(cg_steps=20), proximal=1.0, **kwargs
    )


def quadratic(p, batch, rng):
    return jnp.sum((p["a"] - 1) ** 2 + p["b"] ** 2 * p["a"]) / 2, {}


QUADRATIC = {"a": jnp.asarray(3.0), "b": jnp.asarray(0.5)}


NOTHING = metajax.Episode(jnp.zeros(1), jnp.zeros(1))


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.chain(optax.add_decayed_weights(2.0), optax.sgd(0.1)),
        optax.adamw(0.1),
        optax.chain(optax.sgd(0.1), optax.keep_params_nonnegative()),
    ],
)
def test_implicit_refuses_what_ends_elsewhere_than_at_the_minimizer(optimizer):
    with pytest.raises(ValueError, match="as weight decay does"):
        meta_gradient(
            implicit_loop(quadratic, optimizer), metajax.query_loss(quadratic), QUADRATIC, NOTHING
        )


def test_implicit_refuses_an_optimizer_that_leaves_a_parameter():
    labels = {"a": "move", "b": "keep"}
    partition = optax.partition({"move": optax.sgd(0.1), "keep": optax.set_to_zero()}, labels)
    with pytest.raises(ValueError, match=r"never moves params\['b'\].*adapt_only"):
        meta_gradient(
            implicit_loop(quadratic, partition), metajax.query_loss(quadratic), QUADRATIC, NOTHING
        )
    # A first step of zero is no frozen parameter, nor is a gradient whose mean is subtracted.
    for optimizer in (
        optax.sgd(optax.linear_schedule(0.0, 0.1, 3)),
        optax.chain(optax.centralize(), optax.sgd(0.1)),
    ):
        adapt = implicit_loop(relu_loss, optimizer)
        adapt.apply(metajax.MetaParams(DEAD), jnp.ones((4, 1)), jax.random.key(0))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "optimizer",
    [optax.sgd(0.1), optax.sgd(0.05, momentum=0.5), optax.lbfgs()],
    ids=["sgd", "momentum", "lbfgs"],
)
def test_implicit_of_a_part_is_that_of_the_whole_path(optimizer):
    """`a` adapts, `b` is what its minimizer depends on."""
    params = jax.tree.map(lambda x: x.astype(jnp.float64), QUADRATIC)
    where = lambda path: path[0].key == "a"  # noqa: E731
    found = meta_gradient(
        implicit_loop(quadratic, metajax.adapt_only(optimizer, where)),
        metajax.query_loss(quadratic),
        params,
        NOTHING,
    ).params

    def by_hand(p):
        # (a - 1) + b^2 / 2 + (a - a0) = 0
        a = (1 + p["a"] - p["b"] ** 2 / 2) / 2
        return quadratic({"a": a, "b": p["b"]}, None, None)[0]

    assert_close(found, jax.grad(by_hand)(params), rtol=1e-6)


def test_implicit_keeps_the_types_of_mixed_parameters():
    """The inverse against its closed form: the inner problem is a diagonal quadratic."""
    curvature = {"a": jnp.asarray([1.0, 3.0], jnp.bfloat16), "b": jnp.asarray([0.5, 7.0])}

    def loss(params, batch, rng):
        terms = jax.tree.map(lambda c, p: 0.5 * jnp.sum(c * p**2), curvature, params)
        return terms["a"].astype(jnp.float32) + terms["b"], {}

    def query(params, batch, rng):
        return sum(jnp.sum(p.astype(jnp.float32)) for p in jax.tree.leaves(params)), {}

    adapt = metajax.inner_loop(
        loss, optax.sgd(0.1), 20, meta_gradient=metajax.implicit(cg_steps=8), proximal=2.0
    )
    params = jax.tree.map(jnp.ones_like, curvature)
    found = meta_gradient(adapt, metajax.query_loss(query), params, metajax.Episode((), ())).params
    for name in params:
        assert found[name].dtype == params[name].dtype
        expected = 1 / (1 + curvature[name].astype(jnp.float32) / 2.0)
        np.testing.assert_allclose(found[name].astype(np.float32), expected, rtol=1e-2)


def quartic(params, batch, rng):
    return params**4 / 4 - params * jnp.mean(batch), {}


def test_derivatives_of_an_implicit_derivative(float64):
    """The minimizer depends on the parameters, in the Hessian as well."""
    key = jax.random.key(0)

    def learner(proximal):
        return metajax.imaml(
            quartic, optax.sgd(0.1), optax.sgd(1.0), num_steps=300, proximal=proximal, cg_steps=20
        )

    def updated(proximal):
        made = learner(proximal)
        episodes = metajax.Episode(jnp.full((1, 1), 2.0), jnp.full((1, 1), 3.0))
        return made.update(made.init(jnp.asarray(0.5)), episodes, key)[0].meta_params.params

    def objective(params):
        episode = metajax.Episode(jnp.full(1, 2.0), jnp.full(1, 3.0))
        meta_params = metajax.MetaParams(params)
        return metajax.query_loss(quartic)(learner(2.0).inner, meta_params, episode, key)[0]

    assert_close(jax.grad(updated)(2.0), 0.456, 1e-6)
    assert_close(jax.grad(jax.grad(objective))(0.5), 0.864, 1e-6)
    assert_close(jax.jacfwd(jax.grad(objective))(0.5), 0.864, 1e-6)


def decay_of_a_copy():
    """Weight decay of the parameters, of which it keeps a copy."""

    def update(grads, copy, params=None):
        updates = jax.tree.map(lambda g, c: -0.1 * (g + 2 * c), grads, copy)
        return updates, optax.apply_updates(copy, updates)

    return optax.GradientTransformation(lambda params: params, update)


def test_check_minimizer_finds_another_fixed_point():
    def loss(params, batch, rng):
        return jnp.sum((params - batch) ** 2) / 2, {}

    def checked(optimizer, **options):
        learner = metajax.imaml(loss, optimizer, optax.sgd(1.0), proximal=1.0, **options)
        start = metajax.MetaParams(jnp.asarray([3.0, 0.0]))
        support = jnp.asarray([1.0, 2.0])
        return metajax.check_minimizer(learner.inner, start, support, jax.random.key(0))

    assert checked(optax.sgd(0.1), num_steps=100) < 1e-4
    assert checked(optax.lbfgs(), num_steps=5) < 1e-4
    decayed = optax.chain(optax.lbfgs(), optax.add_decayed_weights(-0.1))
    for optimizer, steps in ((optax.sgd(0.1), 3), (decayed, 20)):
        with pytest.raises(ValueError, match="does not reach the minimizer"):
            checked(optimizer, num_steps=steps)
    centralized = optax.chain(optax.centralize(), optax.sgd(0.1))
    with pytest.raises(ValueError, match="does not reach the minimizer"):
        metajax.check_minimizer(
            metajax.imaml(loss, centralized, optax.sgd(1.0), num_steps=100).inner,
            metajax.MetaParams(jnp.ones((2, 2))),
            jnp.arange(4.0).reshape(2, 2),
            jax.random.key(0),
        )
    with pytest.raises(ValueError, match="the state of this one holds the parameters"):
        checked(decay_of_a_copy(), num_steps=10)
