"""Nothing looks at values: whatever a learner closes over may be mapped over or differentiated."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from tests.helpers import assert_close, mlp_loss, mlp_params, regression

KEY = jax.random.key(0)
EPISODES = regression(tasks=3)
RATES = (0.02, 0.05, 0.1)


def of_rate(make, dtype=jnp.float32):
    """Two updates and an adaptation, as a function of what `make` closes over."""
    episodes = jax.tree.map(lambda x: x.astype(dtype), EPISODES)
    one = jax.tree.map(lambda x: x[0], episodes)

    def outcome(rate):
        learner = make(rate)
        state = learner.init(mlp_params(dtype=dtype))
        for _ in range(2):
            state, _ = learner.update(state, episodes, KEY)
        adapted = learner.adapt(state, one.support, KEY)
        return mlp_loss(adapted, one.query, KEY)[0]

    return outcome


def adam(rate):
    # Smooth enough for finite differences.
    return optax.adam(rate, eps_root=1e-2)


SGD = optax.sgd(0.1)


def exact(inner_optimizer, objective):
    return metajax.meta_learner(metajax.inner_loop(mlp_loss, inner_optimizer, 2), objective, SGD)


SWEPT = {
    "inner rate": lambda r: metajax.maml(mlp_loss, optax.sgd(r), SGD, num_steps=2),
    "inner adam": lambda r: metajax.maml(mlp_loss, adam(r), SGD, num_steps=2),
    "remat": lambda r: metajax.maml(
        mlp_loss, adam(r), SGD, num_steps=2, meta_gradient=metajax.second_order(remat=True)
    ),
    "mixed_mode": lambda r: metajax.maml(
        mlp_loss, adam(r), SGD, num_steps=2, meta_gradient=metajax.mixed_mode()
    ),
    "outer rate": lambda r: metajax.maml(mlp_loss, SGD, optax.adam(r), num_steps=2),
    "loss": lambda r: metajax.maml(
        lambda p, b, k: (r * mlp_loss(p, b, k)[0], {}), SGD, SGD, num_steps=2
    ),
    "fomaml": lambda r: metajax.fomaml(mlp_loss, optax.sgd(r), SGD, num_steps=2),
    "reptile": lambda r: metajax.reptile(mlp_loss, optax.sgd(r), SGD, num_steps=2),
    "carry": lambda r: metajax.reptile(
        mlp_loss, optax.adam(r), SGD, num_steps=2, batches=metajax.cycle(2), carry="mean"
    ),
    "serial": lambda r: metajax.reptile(mlp_loss, optax.adam(r), SGD, num_steps=2, carry="serial"),
    "proximal": lambda r: metajax.imaml(
        mlp_loss, optax.sgd(0.05), SGD, num_steps=4, proximal=20 * r
    ),
    "implicit rate": lambda r: metajax.imaml(mlp_loss, optax.sgd(r), SGD, num_steps=4),
    "meta_sgd": lambda r: metajax.meta_sgd(mlp_loss, SGD, num_steps=2, learning_rate=r),
    "anil": lambda r: metajax.anil(
        mlp_loss, optax.sgd(r), SGD, num_steps=2, head=lambda path: path[0].idx == 1
    ),
    "boil": lambda r: metajax.boil(
        mlp_loss, optax.sgd(r), SGD, num_steps=2, head=lambda path: path[0].idx == 1
    ),
    "maml_plus_plus": lambda r: metajax.maml_plus_plus(
        mlp_loss, metajax.learned_per_step_sizes(r, 2), SGD, num_steps=2, annealed_updates=4
    ),
    "displacement": lambda r: exact(optax.adam(r, eps_root=1e-2), metajax.displacement()),
    "last_update": lambda r: exact(optax.sgd(r), metajax.last_update()),
    "tail": lambda r: metajax.meta_learner(
        metajax.inner_loop(mlp_loss, optax.sgd(r), 2),
        metajax.last_update(tail=metajax.inner_loop(mlp_loss, optax.sgd(r), 1)),
        SGD,
    ),
    "weighted_updates": lambda r: exact(optax.sgd(r), metajax.weighted_updates((0.3, 0.7))),
    "devices": lambda r: metajax.maml(
        mlp_loss, optax.sgd(r), SGD, num_steps=2, mesh=metajax.task_mesh(3)
    ),
    "chunks": lambda r: metajax.maml(mlp_loss, optax.sgd(r), SGD, num_steps=2, task_chunk=2),
}


def some(names):
    """Those of other engines and algorithms are slow tests."""
    few = {"inner rate", "inner adam", "mixed_mode", "outer rate", "loss", "reptile", "proximal"}
    few |= {"implicit rate", "displacement", "tail", "weighted_updates"}
    return [n if n in few else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", some(SWEPT))
def test_a_sweep_is_a_vmap(name):
    outcome = jax.jit(of_rate(SWEPT[name], jnp.float64))
    together = jax.jit(jax.vmap(of_rate(SWEPT[name], jnp.float64)))(jnp.asarray(RATES))
    assert_close(together, jnp.stack([outcome(rate) for rate in RATES]), rtol=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", some(n for n in SWEPT if n not in ("carry", "serial")))
def test_a_hypergradient_is_a_grad(name):
    outcome = jax.jit(of_rate(SWEPT[name], jnp.float64))
    rate, step = jnp.asarray(0.05), 1e-6
    numeric = (outcome(rate + step) - outcome(rate - step)) / (2 * step)
    if name in ("fomaml", "reptile", "implicit rate", "proximal"):
        # Their meta-gradients leave derivatives out, and so do the derivatives of those.
        assert jnp.isfinite(jax.jit(jax.grad(of_rate(SWEPT[name], jnp.float64)))(rate))
        return
    found = jax.jit(jax.grad(of_rate(SWEPT[name], jnp.float64)))(rate)
    assert_close(found, numeric, rtol=1e-5, atol=1e-9)


def test_the_derivative_of_reptiles_result():
    """One step on (p - 1)**2 from 0 moves p by twice its size, and Reptile by half of that."""

    def after(rate):
        learner = metajax.reptile(
            lambda p, batch, rng: (jnp.mean((p - batch) ** 2), {}),
            optax.sgd(rate),
            optax.sgd(0.5),
            num_steps=1,
        )
        state = learner.init(jnp.zeros(()))
        episodes = metajax.Episode(jnp.ones((1, 2)), jnp.ones((1, 2)))
        return learner.update(state, episodes, KEY)[0].meta_params.params

    assert_close(jax.jit(jax.grad(after))(0.1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("types", [("bfloat16", "float32"), ("float16", "float16")])
def test_reptile_keeps_narrow_types(types):
    def loss(params, batch, rng):
        return sum(jnp.mean((p - batch) ** 2).astype(jnp.float32) for p in params), {}

    params = tuple(jnp.zeros((), dtype) for dtype in types)
    episodes = metajax.Episode(jnp.ones((1, 2)), jnp.ones((1, 2)))
    learner = metajax.reptile(loss, optax.sgd(0.25), optax.sgd(0.5), num_steps=1)
    state, metrics = jax.jit(learner.update)(learner.init(params), episodes, KEY)
    assert [str(p.dtype) for p in state.meta_params.params] == list(types)
    assert [float(p) for p in state.meta_params.params] == [0.25, 0.25]
    assert metrics["objective"] == 0.25


def test_forward_mode_and_scan_and_checkpoint_cross_an_update():
    outcome = of_rate(SWEPT["inner adam"])
    rate = jnp.asarray(0.05)
    reverse = jax.jit(jax.grad(outcome))(rate)
    forward = jax.jit(lambda r: jax.jvp(outcome, (r,), (jnp.ones(()),))[1])(rate)
    remat = jax.jit(jax.grad(jax.checkpoint(outcome)))(rate)
    assert_close([forward, remat], [reverse, reverse], rtol=1e-4)
    scanned = jax.jit(lambda rs: jax.lax.scan(lambda c, r: (c, outcome(r)), 0, rs)[1])
    assert_close(scanned(jnp.asarray(RATES)), jax.jit(jax.vmap(outcome))(jnp.asarray(RATES)), 1e-4)


def test_a_learned_optimizer_may_index_its_rates():
    def make(rates):
        def update(grads, step, params=None):
            return jax.tree.map(lambda g: -rates[step] * g, grads), step + 1

        return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)

    learned = metajax.LearnedOptimizer(lambda params: jnp.full(3, 0.1), make)
    learner = metajax.maml(mlp_loss, learned, SGD, num_steps=3)
    state, _ = learner.update(learner.init(mlp_params()), EPISODES, KEY)
    assert (np.asarray(state.meta_params.inner) != 0.1).all()


def test_init_runs_nothing_of_the_optimizer():
    def never(grads, state, params=None):
        raise AssertionError("init has no gradients to update with")

    optimizer = optax.GradientTransformation(lambda params: (), never)
    metajax.maml(mlp_loss, optimizer, SGD, num_steps=5).init(mlp_params())


def test_without_jit_the_numbers_are_the_same():
    """Joint training too, which has no inner steps to scan over."""
    code = """
import jax, optax, metajax
from tests.helpers import mlp_loss, mlp_params, regression
for num_steps in (0, 1, 3):
    learner = metajax.maml(mlp_loss, optax.sgd(0.1), optax.sgd(0.1), num_steps=num_steps)
    state, metrics = jax.jit(learner.update)(
        learner.init(mlp_params()), regression(tasks=2), jax.random.key(0))
    print(metrics["support_loss"].shape, f"{float(metrics['query_loss']):.4f}")
"""
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "JAX_DISABLE_JIT": disabled},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for disabled in ("0", "1")
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0].startswith("(0,)")
