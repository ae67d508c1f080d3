"""What does not adapt costs the inner loop nothing: memory and operations of a loop by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from tests.helpers import RECORDER, assert_close, recorded_gradient

WIDTH, DEPTH, RATE = 64, 4, 0.1
KEY = jax.random.key(0)


def initial():
    keys = jax.random.split(KEY, DEPTH + 1)
    return {
        "body": [jax.random.normal(k, (WIDTH, WIDTH)) / WIDTH**0.5 for k in keys[:-1]],
        "head": jax.random.normal(keys[-1], (WIDTH, 1)) / WIDTH**0.5,
        "step": jnp.zeros(()),
    }


PARAMS = initial()
BATCH = jnp.ones((10, WIDTH)), jnp.ones((10, 1))


def loss(params, batch, rng):
    x, y = batch
    for w in params["body"]:
        x = jnp.tanh(x @ w)
    scale = jnp.asarray([1.0, 0.9, 0.8])[params["step"].astype(jnp.int32) % 3]
    return jnp.mean((scale * x @ params["head"] - y) ** 2), {}


def is_head(path):
    return path[0].key == "head"


def by_hand(num_steps, engine):
    """The head alone in the loop."""
    wrap = jax.checkpoint if engine == "remat" else lambda f: f

    def outcome(params, support, query):
        @wrap
        def step(head):
            return head - RATE * jax.grad(lambda h: loss({**params, "head": h}, support, KEY)[0])(
                head
            )

        head, _ = jax.lax.scan(
            lambda head, _: (step(head), ()), params["head"], None, length=num_steps
        )
        return loss({**params, "head": head}, query, KEY)[0]

    return outcome


ENGINES = {
    "second_order": metajax.second_order(),
    "remat": metajax.second_order(remat=True),
    "mixed_mode": metajax.mixed_mode(),
}
OPTIMIZERS = {
    "adapt_only": metajax.adapt_only(optax.sgd(RATE), is_head),
    "learned": metajax.adapt_only(metajax.learned_step_sizes(RATE), is_head),
    "count_steps": metajax.count_steps(
        metajax.adapt_only(optax.sgd(RATE), is_head), lambda path: path[0].key == "step"
    ),
}


def by_library(num_steps, engine, optimizer="adapt_only", carry=None):
    adapt = metajax.inner_loop(
        loss, OPTIMIZERS[optimizer], num_steps, meta_gradient=ENGINES[engine], carry=carry
    )
    inner, inner_state = adapt.init(PARAMS)

    def outcome(params, support, query):
        episode, meta_params = metajax.Episode(support, query), metajax.MetaParams(params, inner)
        return metajax.query_loss(loss)(adapt, meta_params, episode, KEY, inner_state=inner_state)[
            0
        ]

    return outcome


def cost(outcome):
    compiled = jax.jit(jax.grad(outcome)).lower(PARAMS, BATCH, BATCH).compile()
    return compiled.memory_analysis().temp_size_in_bytes, compiled.cost_analysis()["flops"]


@pytest.mark.optimized
@pytest.mark.parametrize("engine", ENGINES)
def test_memory_and_operations_are_those_of_the_loop_by_hand(engine):
    ours, theirs = cost(by_library(8, engine)), cost(by_hand(8, engine))
    assert ours[0] <= 1.1 * theirs[0]
    assert ours[1] <= 1.1 * theirs[1]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("engine", ENGINES)
def test_further_steps_keep_no_copy_of_the_frozen(engine, optimizer):
    few, many = (cost(by_library(n, engine, optimizer, "mean"))[0] for n in (2, 16))
    frozen = sum(x.nbytes for x in jax.tree.leaves(PARAMS["body"]))
    assert many - few < frozen  # not one copy in fourteen steps


@pytest.mark.parametrize("engine", ENGINES)
def test_the_numbers_are_those_of_the_loop_by_hand(engine):
    ours = jax.jit(jax.grad(by_library(3, engine)))(PARAMS, BATCH, BATCH)
    theirs = jax.jit(jax.grad(by_hand(3, "second_order")))(PARAMS, BATCH, BATCH)
    assert_close(ours, theirs, rtol=1e-4)


def test_the_frozen_are_meta_learned():
    for algorithm in (metajax.anil, metajax.boil):
        learner = algorithm(loss, optax.sgd(RATE), RECORDER, num_steps=2, head=is_head)
        episodes = jax.tree.map(lambda x: x[None], metajax.Episode(BATCH, BATCH))
        found = recorded_gradient(learner, PARAMS, episodes).params
        assert all(np.any(x) for x in jax.tree.leaves((found["body"], found["head"])))


def test_a_count_in_a_part_that_adapts():
    adapt = metajax.inner_loop(loss, OPTIMIZERS["count_steps"], 3)
    adapted, _ = adapt.apply(metajax.MetaParams(PARAMS), BATCH, KEY)
    assert float(adapted["step"]) == 3
    jax.tree.map(np.testing.assert_array_equal, adapted["body"], PARAMS["body"])
    assert np.any(adapted["head"] != PARAMS["head"])
