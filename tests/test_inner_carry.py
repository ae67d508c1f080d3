"""The inner optimizer's state: reset, flowing from task to task, or averaged."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from tests.helpers import assert_close, mlp_loss, mlp_params, regression

TASKS, STEPS, OUTER = 3, 2, 0.5
INNER = optax.adam(0.05, b1=0.0)
KEY = jax.random.key(0)
EPISODES = [regression(seed, TASKS, dtype=jnp.float32) for seed in range(2)]


def reptile(carry):
    return metajax.reptile(mlp_loss, INNER, optax.sgd(OUTER), num_steps=STEPS, carry=carry)


def adapt_by_hand(params, opt_state, support):
    for _ in range(STEPS):
        grads = jax.grad(lambda p: mlp_loss(p, support, None)[0])(params)
        updates, opt_state = INNER.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
    return params, opt_state


def by_hand(carry):
    """Two meta-updates; returns parameters and inner state."""
    params = mlp_params(dtype=jnp.float32)
    carried = INNER.init(params)
    for episodes in EPISODES:
        adapted, ended = [], []
        for task in range(TASKS):
            support = jax.tree.map(lambda x, t=task: x[t], episodes.support)
            start = carried if carry else INNER.init(params)
            phi, end = adapt_by_hand(params, start, support)
            adapted.append(phi)
            ended.append(end)
            if carry == "serial":
                carried = end
        if carry == "mean":
            carried = jax.tree.map(
                lambda *xs: sum(xs) / TASKS if jnp.issubdtype(xs[0].dtype, jnp.inexact) else xs[0],
                *ended,
            )
        params = jax.tree.map(
            lambda t, *phis: t + OUTER * (sum(phis) / TASKS - t), params, *adapted
        )
    return params, carried if carry else ()


@pytest.mark.parametrize("carry", [None, "mean", "serial"])
def test_two_meta_updates_follow_the_loop_by_hand(carry):
    learner = reptile(carry)
    state, update = learner.init(mlp_params(dtype=jnp.float32)), jax.jit(learner.update)
    for episodes in EPISODES:
        state, _ = update(state, episodes, KEY)
    params, carried = by_hand(carry)
    assert_close(state.meta_params.params, params, rtol=1e-4, atol=1e-5)
    assert_close(state.inner_state, carried, rtol=1e-4, atol=1e-6)


def test_the_three_policies_differ():
    params = [jax.flatten_util.ravel_pytree(by_hand(c)[0])[0] for c in (None, "mean", "serial")]
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        assert np.abs(params[a] - params[b]).max() > 1e-4


@pytest.mark.parametrize("carry", ["mean", "serial"])
def test_step_counts_flow_on(carry):
    learner = reptile(carry)
    state = learner.init(mlp_params(dtype=jnp.float32))
    state, _ = learner.update(state, EPISODES[0], KEY)
    per_update = {"mean": STEPS, "serial": STEPS * TASKS}[carry]
    assert int(state.inner_state[0].count) == per_update


def test_evaluation_starts_from_the_training_state_and_leaves_it():
    learner = reptile("mean")
    state = learner.init(mlp_params(dtype=jnp.float32))
    state, _ = learner.update(state, EPISODES[0], KEY)
    support = jax.tree.map(lambda x: x[0], EPISODES[1].support)
    expected, _ = adapt_by_hand(state.meta_params.params, state.inner_state, support)
    before = jax.tree.map(np.array, state)
    assert_close(learner.adapt(state, support, KEY), expected, rtol=1e-4, atol=1e-5)
    assert_close(state, before, rtol=0, atol=0)


def test_a_carried_state_is_not_dropped_in_silence():
    state = reptile("mean").init(mlp_params(dtype=jnp.float32))
    adapt = metajax.inner_loop(mlp_loss, INNER, 1, meta_gradient=metajax.first_order())
    with pytest.raises(ValueError, match="built with carry=None"):
        metajax.evaluate(adapt, lambda *_: 0.0, state, EPISODES[0], KEY)


@pytest.mark.parametrize("carry", ["mean", "serial"])
def test_a_state_without_what_is_carried_is_refused(carry):
    state = reptile(None).init(mlp_params(dtype=jnp.float32))
    message = f"built with carry='{carry}', but the state's inner_state"
    with pytest.raises(ValueError, match=message):
        reptile(carry).update(state, EPISODES[0], KEY)
    support = jax.tree.map(lambda x: x[0], EPISODES[0].support)
    with pytest.raises(ValueError, match=message):
        reptile(carry).adapt(state, support, KEY)


def test_what_is_carried_may_be_a_bare_array():
    momentum = optax.GradientTransformation(
        jnp.zeros_like,
        lambda grads, velocity, params=None: (-(0.5 * velocity + grads), 0.5 * velocity + grads),
    )

    def loss(params, batch, rng):
        return params * batch, {}

    adapt = metajax.inner_loop(loss, momentum, 2, carry="mean")
    meta_params, support = metajax.MetaParams(jnp.zeros(())), jnp.ones(())
    # The velocities are 1 and 3/2; then, carried on, 7/4 and 15/8.
    adapted, info = adapt.apply(meta_params, support, KEY)
    assert (adapted, info.inner_state) == (-2.5, 1.5)
    adapted, info = adapt.apply(meta_params, support, KEY, inner_state=info.inner_state)
    assert (adapted, info.inner_state) == (-3.625, 1.875)
    with pytest.raises(ValueError, match="cannot continue from an inner_state"):
        adapt.apply(meta_params, support, KEY, inner_state=(jnp.zeros(()),))
