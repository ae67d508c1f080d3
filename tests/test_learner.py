"""All algorithms x what must hold for every one of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from tests.helpers import assert_close, mlp_loss, mlp_params, regression

TASKS = 5


def build(make, **fixed):
    """`make` as a function of the loss, the outer optimizer and `task_chunk`."""
    return lambda loss, outer, **kwargs: make(loss, outer, **fixed, **kwargs)


def sgd_inside(algorithm):
    return lambda loss, outer, **kwargs: algorithm(loss, optax.sgd(0.1), outer, **kwargs)


def adam_inside(algorithm):
    adam = optax.adam(0.05, b1=0.0, eps_root=1e-8)
    return lambda loss, outer, **kwargs: algorithm(loss, adam, outer, **kwargs)


def learned_inside(algorithm):
    rates = metajax.learned_step_sizes(0.1)
    return lambda loss, outer, **kwargs: algorithm(loss, rates, outer, **kwargs)


def plus_plus(loss, outer, **kwargs):
    rates = metajax.learned_per_step_sizes(0.1, 2)
    return metajax.maml_plus_plus(loss, rates, outer, num_steps=2, annealed_updates=4, **kwargs)


def is_last(path):
    return path[0].idx == 1


ALGORITHMS = {
    "maml": build(sgd_inside(metajax.maml), num_steps=2),
    "maml_adam": build(adam_inside(metajax.maml), num_steps=2),
    "maml_remat": build(
        sgd_inside(metajax.maml), num_steps=2, meta_gradient=metajax.second_order(remat=True)
    ),
    "maml_mixed": build(adam_inside(metajax.maml), num_steps=2, meta_gradient=metajax.mixed_mode()),
    "maml_plus_plus": plus_plus,
    "fomaml": build(sgd_inside(metajax.fomaml), num_steps=2),
    "reptile": build(adam_inside(metajax.reptile), num_steps=2),
    "reptile_cycle": build(sgd_inside(metajax.reptile), num_steps=3, batches=metajax.cycle(4)),
    "reptile_mean": build(adam_inside(metajax.reptile), num_steps=2, carry="mean"),
    "reptile_serial": build(adam_inside(metajax.reptile), num_steps=2, carry="serial"),
    "imaml": build(sgd_inside(metajax.imaml), num_steps=4, proximal=2.0, cg_steps=3),
    "meta_sgd": build(metajax.meta_sgd, num_steps=2),
    "anil": build(sgd_inside(metajax.anil), num_steps=2, head=is_last),
    "boil": build(sgd_inside(metajax.boil), num_steps=2, head=is_last),
    "anil_learned": build(learned_inside(metajax.anil), num_steps=2, head=is_last),
    "pretraining": build(sgd_inside(metajax.maml), num_steps=0),
}
# Which batches a task sees depends on its place in the meta-batch, by its key.
BY_PLACE = {"reptile_cycle"}
LEARNED = {"meta_sgd", "anil_learned", "maml_plus_plus"}
CARRIED = {"reptile_mean", "reptile_serial"}

# Other engines, inner optimizers and batches of algorithms that are tested in every run.
VARIANTS = {"maml_adam", "maml_remat", "reptile_cycle", "anil_learned"}


def over(names, slow=VARIANTS):
    """A test for each algorithm; those of `slow` are marked so."""
    marked = [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in names]
    return pytest.mark.parametrize("name", marked)


every = over(ALGORITHMS)


def start(name, loss=mlp_loss, **kwargs):
    learner = ALGORITHMS[name](loss, optax.sgd(0.03, momentum=0.9), **kwargs)
    return learner, learner.init(mlp_params(dtype=jnp.float32))


EPISODES = regression(tasks=TASKS, dtype=jnp.float32)
KEY = jax.random.key(7)


@functools.cache
def compiled(name, **kwargs):
    """A fresh state and the compiled update, shared by all tests."""
    learner, state = start(name, **kwargs)
    return state, jax.jit(learner.update)


def updated(name, episodes=EPISODES, **kwargs):
    state, update = compiled(name, **kwargs)
    return update(state, episodes, KEY)


# Eagerly, the others take long.
@over(ALGORITHMS, ALGORITHMS.keys() - {"maml", "fomaml", "reptile_serial", "meta_sgd", "anil"})
def test_jit_equals_eager(name):
    learner, state = start(name)
    eager = learner.update(state, EPISODES, KEY)
    assert_close(updated(name), eager, rtol=2e-4, atol=1e-5)


@every
def test_many_updates_compile_and_trace_once(name):
    traces = []

    def counted(params, batch, rng):
        traces.append(None)
        return mlp_loss(params, batch, rng)

    learner, state = start(name, counted)
    update = jax.jit(learner.update)
    state, _ = update(state, EPISODES, KEY)
    once = len(traces)
    for seed in range(3):
        state, _ = update(state, regression(seed, TASKS, dtype=jnp.float32), jax.random.key(seed))
    assert update._cache_size() == 1
    assert len(traces) == once


@over([name for name in ALGORITHMS if name not in BY_PLACE | {"reptile_serial"}])
def test_the_order_of_tasks_does_not_matter(name):
    order = np.array([3, 1, 4, 0, 2])
    permuted = jax.tree.map(lambda x: x[order], EPISODES)
    assert_close(updated(name, permuted)[0], updated(name)[0], rtol=1e-4, atol=1e-6)


@over(
    [name for name in ALGORITHMS if name not in BY_PLACE | CARRIED],
    ALGORITHMS.keys() - {"maml", "fomaml", "reptile", "maml_plus_plus"},
)
def test_two_tasks_are_the_mean_of_two_single_ones(name):
    state, update = compiled(name)

    def step_of(episodes):
        new, _ = update(state, episodes, KEY)
        return jax.tree.map(jnp.subtract, new.meta_params, state.meta_params)

    both, first, second = (
        step_of(jax.tree.map(lambda x, s=s: x[s], EPISODES))
        for s in (slice(0, 2), slice(0, 1), slice(1, 2))
    )
    mean = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
    assert_close(both, mean, rtol=1e-3, atol=1e-6)


# 2 leaves a rest of one task.
@pytest.mark.parametrize("task_chunk", [pytest.param(1, marks=pytest.mark.slow), 2])
@every
def test_chunks_do_not_change_a_number(name, task_chunk):
    chunked = updated(name, task_chunk=task_chunk)
    assert_close(chunked, updated(name), rtol=1e-4, atol=1e-6)


@every
def test_the_state_keeps_its_structure_shapes_and_types(name):
    _, state = start(name)
    new, _ = updated(name)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
        assert (before.shape, before.dtype) == (after.shape, after.dtype)
    assert int(new.step) == 1


@every
def test_updates_run_in_a_scan(name):
    learner, state = start(name)
    key = jax.random.split(KEY, 3)
    scanned, metrics = jax.jit(
        lambda state: jax.lax.scan(lambda s, k: learner.update(s, EPISODES, k), state, key)
    )(state)
    for k in key:
        state, _ = compiled(name)[1](state, EPISODES, k)
    assert_close(scanned, state, rtol=1e-3, atol=1e-5)
    assert metrics["objective"].shape == (3,)


@every
def test_metrics(name):
    _, metrics = updated(name)
    steps = {"reptile_cycle": 3, "imaml": 4, "pretraining": 0}.get(name, 2)
    assert metrics["support_loss"].shape == metrics["support"]["mean"].shape == (steps,)
    assert metrics["query_loss"].shape == metrics["query"]["mean"].shape == ()
    assert metrics["meta_gradient_norm"] > 0
    assert ("meta_gradient_norm_inner" in metrics) == (name in LEARNED)


@every
def test_learning_lowers_the_query_loss(name):
    state, update = compiled(name)
    losses = []
    for _ in range(20):
        state, metrics = update(state, EPISODES, KEY)
        losses.append(metrics["query_loss"])
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("algorithm", [metajax.maml, metajax.fomaml])
def test_a_zero_inner_learning_rate_is_joint_training(algorithm):
    learner = algorithm(mlp_loss, optax.sgd(0.0), optax.sgd(0.1), num_steps=2)
    state = learner.init(mlp_params(dtype=jnp.float32))
    new, _ = learner.update(state, EPISODES, KEY)
    pooled = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), EPISODES.query)
    gradient = jax.grad(lambda p: mlp_loss(p, pooled, KEY)[0])(state.meta_params.params)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.meta_params.params, gradient)
    assert_close(new.meta_params.params, expected, rtol=1e-4)


def test_bfloat16_parameters_stay_bfloat16():
    learner = metajax.maml(mlp_loss, optax.sgd(0.1), optax.sgd(0.1), num_steps=2, task_chunk=2)
    state = learner.init(mlp_params(dtype=jnp.bfloat16))
    new, _ = learner.update(state, regression(tasks=TASKS, dtype=jnp.bfloat16), KEY)
    assert {p.dtype for p in jax.tree.leaves(new.meta_params)} == {jnp.dtype(jnp.bfloat16)}


def quadratic(params, batch, rng):
    return jnp.mean((sum(jax.tree.leaves(params)) - batch) ** 2), {}


WEAK = {
    "weak": (optax.sgd(0.1), jnp.asarray(1.0)),
    "float": (optax.sgd(0.1), {"w": 1.0}),
    "numpy": (optax.sgd(0.1), {"w": np.ones(())}),
    "full": (metajax.learned_step_sizes(0.1), {"w": jnp.full((), 0.5)}),
    "learned_float": (metajax.LearnedOptimizer(lambda _: 0.1, optax.sgd), {"w": 1.0}),
    "learned_weak": (metajax.LearnedOptimizer(lambda _: jnp.asarray(0.1), optax.sgd), {"w": 1.0}),
}


@pytest.mark.parametrize("inner_optimizer", WEAK.values(), ids=WEAK)
def test_weak_types_compile_once(inner_optimizer):
    optimizer, params = inner_optimizer
    learner = metajax.maml(quadratic, optimizer, optax.adam(0.1))
    state, update = learner.init(params), jax.jit(learner.update)
    for _ in range(3):
        state, _ = update(state, metajax.Episode(jnp.ones((2, 3)), jnp.ones((2, 3))), KEY)
    assert update._cache_size() == 1
