"""Derivative rules of a user's own, which need not be the true derivative."""

import jax
import jax.numpy as jnp
import optax
import pytest

import metajax
from tests.helpers import assert_close, meta_gradient


def own_rule_of_a_jax_function():
    cos = jax.custom_jvp(jax.lax.cos)
    cos.defjvp(lambda primals, tangents: (jnp.cos(primals[0]), tangents[0]))
    return cos


def own_rules_of_a_jax_function():
    cos = jax.custom_jvp(jax.lax.cos)
    cos.defjvps(lambda tangent, _, x: tangent)
    return cos


@pytest.mark.parametrize("make", [own_rule_of_a_jax_function, own_rules_of_a_jax_function])
def test_mixed_mode_sees_a_rule_that_a_function_of_jax_was_given(make, float64):
    fn = make()

    def support_loss(params, batch, rng):
        return (fn(params["a"]) * params["b"] - 1) ** 2 / 2, {}

    def query_loss(params, batch, rng):
        return params["a"] ** 2 + params["b"], {}

    params, episode = {"a": jnp.asarray(2.0), "b": jnp.asarray(3.0)}, metajax.Episode((), ())
    found = [
        meta_gradient(
            metajax.inner_loop(support_loss, optax.sgd(0.1), 1, meta_gradient=engine),
            metajax.query_loss(query_loss),
            params,
            episode,
        ).params
        for engine in (metajax.second_order(), metajax.mixed_mode())
    ]
    assert_close(found[1], found[0], 1e-12)
    if make is own_rule_of_a_jax_function:
        assert_close(found[1], {"a": 9.41, "b": 2.85}, 1e-2)
