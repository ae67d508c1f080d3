"""The public constructors against the parts that they are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from tests.helpers import assert_close

KEY = jax.random.key(0)
PARAMS = {"body": jnp.asarray([[1.0, -0.5], [0.3, 0.8]]), "head": jnp.asarray([0.7, -1.2])}
RATE, OUTER = optax.sgd(0.1), optax.sgd(0.5)


def loss(params, batch, rng):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["body"]) @ params["head"] - y) ** 2), {}


def is_head(path):
    return "head" in jax.tree_util.keystr(path)


def episodes(num_tasks=3, queries=4):
    rng = np.random.default_rng(0)

    def batch(num):
        x = rng.normal(size=(num_tasks, num, 2))
        return jnp.asarray(x, jnp.float32), jnp.asarray(np.sin(x).sum(-1), jnp.float32)

    return metajax.Episode(batch(6), batch(queries))


ALGORITHMS = {
    "maml": lambda **o: metajax.maml(loss, RATE, OUTER, num_steps=2, **o),
    "fomaml": lambda **o: metajax.fomaml(loss, RATE, OUTER, num_steps=2, **o),
    "reptile": lambda **o: metajax.reptile(loss, RATE, OUTER, num_steps=2, **o),
    "imaml": lambda **o: metajax.imaml(loss, RATE, OUTER, num_steps=2, **o),
    "meta_sgd": lambda **o: metajax.meta_sgd(loss, OUTER, num_steps=2, learning_rate=0.1, **o),
    "anil": lambda **o: metajax.anil(loss, RATE, OUTER, num_steps=2, head=is_head, **o),
    "boil": lambda **o: metajax.boil(loss, RATE, OUTER, num_steps=2, head=is_head, **o),
    "maml_plus_plus": lambda **o: metajax.maml_plus_plus(
        loss, metajax.learned_per_step_sizes(0.1, 2), OUTER, num_steps=2, annealed_updates=10, **o
    ),
}


def stepped(learner, batch=None, updates=1):
    state = learner.init(PARAMS)
    update = jax.jit(learner.update)
    for step in range(updates):
        state, metrics = update(
            state, episodes() if batch is None else batch, jax.random.fold_in(KEY, step)
        )
    return state, metrics


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_options_reach_every_algorithm(name):
    mesh = metajax.task_mesh(2)
    learner = ALGORITHMS[name](carry="mean", mesh=mesh)
    assert learner.inner.carry == "mean"
    with pytest.raises(ValueError, match="3 tasks cannot be shared equally by the 2 devices"):
        learner.update(learner.init(PARAMS), episodes(), KEY)
    with pytest.raises(ValueError, match="task_chunk must be a positive integer, got 0"):
        ALGORITHMS[name](task_chunk=0)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_batches_reach_every_algorithm(name):
    def built():
        return ALGORITHMS[name](batches=metajax.cycle(9))

    if name == "imaml":
        with pytest.raises(ValueError, match=r"requires .*batches=full_batch"):
            built()
        return
    state = built().init(PARAMS)
    with pytest.raises(ValueError, match="batch_size=9 exceeds the 6 examples"):
        built().update(state, episodes(), KEY)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_misspelt_option_is_named(name):
    with pytest.raises(TypeError, match="unexpected keyword argument 'batch'"):
        ALGORITHMS[name](batch=metajax.full_batch())


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_inner_loop_of_a_learner_is_built_again_with_other_steps(name, steps):
    learner = ALGORITHMS[name]()
    # Learned sizes that differ from each other.
    params, inner = learner.init(PARAMS).meta_params
    inner = jax.tree.map(lambda x: 0.1 + 0.02 * jnp.arange(x.size).reshape(x.shape), inner)
    support = jax.tree.map(lambda x: x[0], episodes().support)
    adapt = learner.inner.rebuild(num_steps=steps)
    adapted, info = adapt.apply(metajax.MetaParams(params, inner), support, KEY)
    assert info.loss.shape == (steps,)
    # By hand: gradient descent with these sizes.
    moves = {"anil": ["head"], "boil": ["body"]}.get(name, ["body", "head"])
    for step in range(steps):
        penalty = 1.0 if name == "imaml" else 0.0

        def value(p, penalty=penalty):
            squares = sum(jnp.sum((p[k] - PARAMS[k]) ** 2) for k in p)
            return loss(p, support, KEY)[0] + penalty * squares

        gradient = jax.grad(value)(params)
        for part in moves:
            size = 0.1
            if name == "meta_sgd":
                size = inner[part]
            elif name == "maml_plus_plus":  # the last size is repeated
                size = inner[part][min(step, 1)]
            params = {**params, part: params[part] - size * gradient[part]}
    assert_close(adapted, params, rtol=2e-5)


def test_the_inner_loop_is_built_again_with_other_batches():
    learner = metajax.reptile(loss, RATE, OUTER, num_steps=2, batches=metajax.cycle(2))
    support = jax.tree.map(lambda x: x[0], episodes().support)
    for batches in (metajax.cycle(3), metajax.full_batch()):
        by_hand = metajax.inner_loop(loss, RATE, 4, batches=batches)
        again = learner.inner.rebuild(num_steps=4, batches=batches)
        found, expected = (
            jax.jit(each.apply)(metajax.MetaParams(PARAMS), support, KEY)[0]
            for each in (again, by_hand)
        )
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), found, expected))


@pytest.mark.parametrize("tail", ["shared", "separate"])
@pytest.mark.parametrize("carry", [None, "mean"])
def test_the_tails_of_first_order_maml(tail, carry):
    optimizer = optax.adam(0.01, b1=0.0)

    def steps(num, **batches):
        return metajax.inner_loop(
            loss, optimizer, num, meta_gradient=metajax.first_order(), carry=carry, **batches
        )

    cycled = {"batches": metajax.cycle(2)}
    learner = metajax.fomaml(loss, optimizer, OUTER, num_steps=3, tail=tail, carry=carry, **cycled)
    objective = metajax.last_update(loss, tail=steps(1) if tail == "separate" else None)
    parts = metajax.meta_learner(steps(3 - (tail == "separate"), **cycled), objective, OUTER)
    assert_close(stepped(learner)[0].meta_params, stepped(parts)[0].meta_params, rtol=0)


def test_a_tail_is_refused_where_there_is_none():
    with pytest.raises(ValueError, match=r"tail must be None, .* got 'last'"):
        metajax.fomaml(loss, RATE, OUTER, tail="last")
    with pytest.raises(ValueError, match="num_steps must not be 0"):
        metajax.fomaml(loss, RATE, OUTER, num_steps=0, tail="shared")


def test_reptile_learns_from_tasks_without_queries():
    state, metrics = stepped(ALGORITHMS["reptile"](), episodes(queries=0))
    assert "query_loss" not in metrics
    expected, _ = stepped(ALGORITHMS["reptile"]())
    assert_close(state.meta_params, expected.meta_params, rtol=0)


def test_the_query_loss_of_a_separate_tail_is_that_before_the_tail():
    def squared(p, batch, rng):
        return jnp.mean((p - batch) ** 2), {}

    learner = metajax.fomaml(squared, RATE, OUTER, num_steps=2, tail="separate")
    batch = metajax.Episode(jnp.ones((1, 4)), jnp.full((1, 4), 3.0))
    _, metrics = learner.update(learner.init(jnp.zeros(())), batch, KEY)
    # One step of .1 on the support from 0 is .2; the tail would go on to .76.
    assert float(metrics["query_loss"]) == pytest.approx(2.8**2)
