"""The objective of learning online, against loops written by hand."""

import jax
import jax.numpy as jnp
import optax
import pytest

import metajax
from tests.helpers import assert_close, meta_gradient

KEY = jax.random.key(0)
STEPS, RATE = 4, 0.3
PARAMS = {
    "body": jax.random.normal(KEY, (2, 3)),
    "head": jax.random.normal(jax.random.key(1), (3, 1)),
}
INPUTS = jax.random.normal(jax.random.key(2), (STEPS, 5, 2))
STREAM = INPUTS, jnp.sin(INPUTS.sum(axis=-1, keepdims=True))
EPISODE = metajax.Episode(STREAM, ())
HEAD = metajax.adapt_only(optax.sgd(RATE), lambda path: path[0].key == "head")


def apply(params, x):
    return jnp.tanh(x @ params["body"]) @ params["head"]


loss = metajax.squared_error(apply)


def by_hand(params, *, first_order):
    """The mean loss of each chunk before its update; only the head learns."""
    head, total = params["head"], 0.0
    for step in range(STEPS):
        x, y = STREAM[0][step], STREAM[1][step]

        def value(head, x=x, y=y):
            return jnp.mean((jnp.tanh(x @ params["body"]) @ head - y) ** 2)

        found, gradient = jax.value_and_grad(value)(head)
        total += found / STEPS
        head = head - RATE * (jax.lax.stop_gradient(gradient) if first_order else gradient)
    return total


def inner(engine, optimizer=HEAD, **changes):
    steps = {"num_steps": STEPS, "batches": metajax.per_step(), **changes}
    return metajax.inner_loop(loss, optimizer, meta_gradient=engine, **steps)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "engine", [metajax.second_order(), metajax.second_order(remat=True), metajax.mixed_mode()]
)
@pytest.mark.parametrize("proximal", [0.0, 0.5])
def test_every_exact_engine_has_the_gradient_of_a_loop(engine, proximal):
    found = meta_gradient(
        inner(engine, proximal=proximal), metajax.online_loss(), PARAMS, EPISODE
    ).params
    if proximal:
        expected = meta_gradient(
            inner(metajax.second_order(), proximal=proximal),
            metajax.online_loss(),
            PARAMS,
            EPISODE,
        ).params
    else:
        expected = jax.grad(lambda p: by_hand(p, first_order=False))(PARAMS)
    assert_close(found, expected, rtol=1e-5)


def test_first_order_is_the_mean_inner_gradient_also_of_what_does_not_adapt():
    found = meta_gradient(
        inner(metajax.first_order()), metajax.online_loss(), PARAMS, EPISODE
    ).params
    assert_close(found, jax.grad(lambda p: by_hand(p, first_order=True))(PARAMS), rtol=1e-5)
    assert jnp.linalg.norm(found["body"]) > 0.01


def test_with_sgd_on_everything_first_order_is_reptile():
    adapt = inner(metajax.first_order(), optax.sgd(RATE))
    found, moved = (
        meta_gradient(adapt, objective, PARAMS, EPISODE).params
        for objective in (metajax.online_loss(), metajax.displacement())
    )
    assert_close(jax.tree.map(lambda g: RATE * STEPS * g, found), moved, rtol=1e-5)


def test_the_support_losses_are_those_before_each_step():
    objective = metajax.online_loss()
    value, (metrics, _) = objective(
        inner(metajax.second_order()), metajax.MetaParams(PARAMS), EPISODE, KEY
    )
    assert_close(value, by_hand(PARAMS, first_order=False))
    assert_close(jnp.mean(metrics["support_loss"]), value)
    first = loss(PARAMS, jax.tree.map(lambda x: x[0], STREAM), KEY)[0]
    assert_close(metrics["support_loss"][0], first)


def test_what_has_no_losses_before_its_steps_is_refused():
    implicit = metajax.inner_loop(
        loss, optax.sgd(RATE), 3, proximal=1.0, meta_gradient=metajax.implicit()
    )
    none = metajax.inner_loop(loss, optax.sgd(RATE), 0)
    one = metajax.Episode(jax.tree.map(lambda x: x[0], STREAM), ())
    for adapt, message in ((implicit, r"implicit\(\) has only"), (none, "without steps")):
        with pytest.raises(ValueError, match=message):
            metajax.online_loss()(adapt, metajax.MetaParams(PARAMS), one, KEY)
