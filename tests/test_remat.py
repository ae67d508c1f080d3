"""Which inner steps `second_order()` recomputes in the backward pass; the numbers are the same."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import nn, remat
from metajax.gradients import equations
from metajax.remat import kept_bytes


def convolutional(dtype=jnp.float32):
    model = nn.ConvNet(2, features=8, depth=2)
    x = jax.random.normal(jax.random.key(1), (3, 4, 12, 12, 1), dtype)
    return metajax.cross_entropy(model.apply), model, (x, jnp.tile(jnp.arange(4) % 2, (3, 1)))


def perceptron(dtype=jnp.float32):
    model = nn.MLP((40, 40), 1)
    x = jax.random.normal(jax.random.key(1), (3, 5, 1), dtype)
    return metajax.squared_error(model.apply), model, (x, jnp.sin(x))


def update(problem, num_steps=10, **engine):
    """The update of MAML on a problem, and its arguments."""
    loss, model, batch = problem
    learner = metajax.maml(
        loss,
        optax.sgd(0.1),
        optax.sgd(1.0),
        num_steps=num_steps,
        meta_gradient=metajax.second_order(**engine),
    )
    params = model.init(jax.random.key(0), batch[0][0])
    params = jax.tree.map(lambda p: p.astype(batch[0].dtype), params)
    return learner.update, (learner.init(params), metajax.Episode(batch, batch), jax.random.key(2))


def recomputes(problem, **options):
    fn, arguments = update(problem, **options)
    program = jax.make_jaxpr(fn)(*arguments).jaxpr
    return any(
        each.primitive.name == "remat2" or "checkpoint" in each.primitive.name
        for each in equations(program)
    )


@pytest.mark.parametrize(
    ("problem", "options", "expected"),
    [
        (convolutional, {}, True),
        (convolutional, {"remat": False}, False),
        (convolutional, {"num_steps": 9}, False),
        (convolutional, {"num_steps": 2, "remat": True}, True),
        (perceptron, {}, False),
        (perceptron, {"remat": True}, True),
    ],
)
def test_steps_with_large_activations_are_recomputed(problem, options, expected):
    assert recomputes(problem(), **options) == expected


def test_few_steps_with_very_large_activations_are_recomputed(monkeypatch):
    assert not recomputes(convolutional(), num_steps=3)
    monkeypatch.setattr(remat, "LARGE", 10_000)
    assert recomputes(convolutional(), num_steps=3)
    assert not recomputes(convolutional(), num_steps=1)
    assert not recomputes(perceptron(), num_steps=3)  # its parameters are larger


def test_accelerators_store(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not recomputes(convolutional())


def test_the_choice_is_logged(caplog):
    with caplog.at_level(logging.INFO, "metajax"):
        recomputes(convolutional())
        recomputes(perceptron())
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("second_order() recomputes each inner step")
    assert second.startswith("second_order() stores each inner step")


@pytest.mark.parametrize("problem", [convolutional, perceptron])
def test_the_choice_changes_no_number(problem):
    with jax.enable_x64(True):
        found = []
        for remat in (None, True, False):
            fn, arguments = update(problem(jnp.float64), remat=remat)
            state, _ = jax.jit(fn)(*arguments)
            found.append(jax.tree.leaves(state.meta_params))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_what_a_loss_keeps_is_counted_without_its_arguments():
    # The derivative of sum(sin(p)) keeps cos(p); that of a linear loss keeps only its arguments.
    p, x = jnp.ones(10), jnp.ones(10)
    assert kept_bytes(lambda p: (jnp.sum(jnp.sin(p)), ()), p, ()) == p.nbytes
    assert kept_bytes(lambda p, x: (jnp.sum(p * x), ()), p, (x,)) == 0


def test_only_a_bool_or_none():
    with pytest.raises(ValueError, match="second_order: remat must be True, False or None, got 1"):
        metajax.second_order(remat=1)
