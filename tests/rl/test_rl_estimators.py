"""Surrogates against exact enumeration of a small decision process, in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import rl
from metajax.rl.rollout import fit_linear
from tests.helpers import assert_close

STATES, ACTIONS = 2, 2
STEP_SIZE = 0.5


def process(horizon, seed=0):
    """All trajectories of a random tabular decision process: states, actions, returns to go."""
    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.ones(STATES), size=(STATES, ACTIONS))
    reward = rng.normal(size=(STATES, ACTIONS)) * 2
    paths = []
    for choice in itertools.product(*[range(ACTIONS), range(STATES)] * horizon):
        actions, nexts = choice[::2], choice[1::2]
        states = (0, *nexts[:-1])
        chance = transition[states, actions, nexts].prod()
        rewards = reward[states, actions]
        paths.append((states, actions, rewards, chance))
    states, actions, rewards, chance = map(np.asarray, zip(*paths, strict=True))
    to_go = np.cumsum(rewards[:, ::-1], axis=1)[:, ::-1]
    return jnp.eye(STATES)[states], jnp.asarray(actions), jnp.asarray(to_go), jnp.asarray(chance)


def policy(params, observations):
    return rl.Categorical(observations @ params)


def enumerated(params, paths):
    """All trajectories as a sample: the mask weighs each by its probability under `params`."""
    observations, actions, to_go, chance = paths
    distribution = policy(params, observations)
    weight = chance * jnp.exp(distribution.log_prob(actions).sum(-1))
    mask = jnp.broadcast_to(weight[:, None], to_go.shape)
    zeros = jnp.zeros(len(to_go))
    return jax.lax.stop_gradient(
        rl.Trajectories(observations, actions, to_go, mask, distribution, to_go, zeros)
    )


def expected_loss(params, paths):
    """Minus the expected return per step, the exact function that surrogates stand for."""
    observations, actions, to_go, chance = paths
    log_probs = policy(params, observations).log_prob(actions).sum(-1)
    return -jnp.sum(chance * jnp.exp(log_probs) * to_go[:, 0]) / to_go.shape[1]


def relative(estimate, exact):
    return float(jnp.linalg.norm(estimate - exact) / jnp.linalg.norm(exact))


def errors(surrogate, horizon, meta_gradient=None):
    """Relative errors of gradient, Hessian and meta-gradient, through the library's own loops."""
    paths = process(horizon)
    params = jnp.asarray(np.random.default_rng(1).normal(size=(STATES, ACTIONS)))
    trajectories = enumerated(params, paths)

    def surrogate_loss(p):
        return surrogate(policy, p, trajectories)

    def adapted_exactly(p):
        return p - STEP_SIZE * jax.grad(expected_loss)(p, paths)

    loop = rl.inner_loop(
        policy,
        lambda p, task, rng: enumerated(p, paths),
        optax.sgd(STEP_SIZE),
        surrogate=surrogate,
        meta_gradient=meta_gradient,
    )
    start = metajax.MetaParams(params)
    collected = jax.jit(rl.collect, static_argnums=0)(loop, start, (), jax.random.key(0))
    adapted = rl.replay(loop, start, collected.support)[-1]
    np.testing.assert_array_equal(collected.policies[0], params)
    np.testing.assert_allclose(collected.policies[1], adapted, rtol=1e-12)
    np.testing.assert_allclose(adapted, adapted_exactly(params), rtol=1e-12)

    def meta_loss(p):
        phi = rl.replay(loop, metajax.MetaParams(p), collected.support)[-1]
        return expected_loss(phi, paths)

    size = params.size
    hessian = jax.jit(jax.hessian(surrogate_loss))(params).reshape(size, size)
    exact = jax.jit(jax.hessian(expected_loss))(params, paths).reshape(size, size)
    meta = jax.jit(jax.grad(lambda p: expected_loss(adapted_exactly(p), paths)))(params)
    return (
        relative(jax.jit(jax.grad(surrogate_loss))(params), jax.grad(expected_loss)(params, paths)),
        relative(hessian, exact),
        relative(jax.jit(jax.grad(meta_loss))(params), meta),
    )


@pytest.mark.usefixtures("float64")
def test_the_estimators_differ_in_the_curvature_only_and_only_dice_is_exact():
    table = {name: errors(surrogate, 2) for name, surrogate in rl.SURROGATES.items()}
    first_order = errors(rl.log_likelihood, 2, metajax.first_order())
    for gradient, _, _ in table.values():
        assert gradient < 1e-12
    assert max(table["dice"]) < 1e-12
    # The biases are not noise: there are no samples here.
    assert 0.05 < table["likelihood_ratio"][1] < table["log_likelihood"][1]
    assert 0.01 < table["likelihood_ratio"][2] < table["log_likelihood"][2]
    assert first_order[2] > 0.01


@pytest.mark.usefixtures("float64")
def test_the_likelihood_ratio_is_exact_for_a_single_step():
    assert max(errors(rl.likelihood_ratio, 1)) < 1e-12
    assert errors(rl.log_likelihood, 1)[1] > 0.05


@pytest.mark.usefixtures("float64")
def test_dice_is_the_original_estimator_up_to_a_constant():
    """Foerster's sum of boxes times rewards, against the form with advantages."""
    paths = process(3)
    params = jnp.asarray(np.random.default_rng(2).normal(size=(STATES, ACTIONS)))
    trajectories = enumerated(params, paths)
    to_go = paths[2]
    rewards = to_go - jnp.concatenate([to_go[:, 1:], jnp.zeros_like(to_go[:, :1])], axis=1)

    def original(p):
        log_probs = policy(p, trajectories.observations).log_prob(trajectories.actions)
        total = jnp.cumsum(log_probs, axis=1)
        boxes = jnp.exp(total - jax.lax.stop_gradient(total))
        return -jnp.sum(trajectories.mask * boxes * rewards) / trajectories.mask.sum()

    def ours(p):
        return rl.dice(policy, p, trajectories)

    for derivative in (jax.grad, jax.hessian, lambda f: jax.jacfwd(jax.hessian(f))):
        a, b = (jax.jit(derivative(f))(params) for f in (ours, original))
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_an_action_of_probability_0_adds_nothing():
    masked = rl.Categorical(jnp.asarray([[0.0, 0.0, -jnp.inf]]))
    other = rl.Categorical(jnp.asarray([[1.0, 0.0, -jnp.inf]]))
    two = rl.Categorical(jnp.asarray([[1.0, 0.0]]))
    assert_close(masked.entropy(), jnp.log(2.0)[None], rtol=1e-6)
    assert masked.kl(masked) == 0
    assert_close(masked.kl(other), rl.Categorical(jnp.zeros((1, 2))).kl(two), rtol=1e-6)
    assert jnp.isinf(rl.Categorical(jnp.zeros((1, 3))).kl(masked))
    for of in (rl.Categorical.entropy, lambda each: each.kl(other)):
        gradient = jax.grad(lambda logits, of=of: of(rl.Categorical(logits)).sum())(masked.logits)
        assert jnp.all(jnp.isfinite(gradient))


def test_advantages_without_rewards_have_a_derivative():
    zeros, observations = jnp.zeros((1, 2)), jnp.ones((1, 2, 1))
    dist = rl.Normal(0 * observations, 0 * observations)
    trajectories = rl.Trajectories(
        observations, 0 * observations, zeros, jnp.ones((1, 2)), dist, (), jnp.zeros(1)
    )

    def total(discount):
        return rl.standardized_advantages(trajectories, discount=discount).sum()

    assert jax.value_and_grad(total)(0.9) == (0, 0)


def test_a_scale_at_its_bound_has_a_whole_gradient():
    model = rl.GaussianMLP(1, hidden=(), init_log_std=-1.0, min_log_std=-1.0)
    params = model.init(jax.random.key(0), jnp.zeros(2))

    def total(log_std):
        changed = {"params": {**params["params"], "log_std": log_std}}
        return model.apply(changed, jnp.zeros((1, 2))).log_std.sum()

    for value, gradient in ((-1.0, 1.0), (-0.5, 1.0), (-1.5, 0.0)):
        assert jax.grad(total)(jnp.asarray([value])) == gradient


def test_a_feature_that_is_always_0_has_a_derivative():
    features = jnp.asarray([[1.0, 0.0], [2.0, 0.0]])
    targets, mask = jnp.asarray([1.0, 3.0]), jnp.ones(2)
    gradient = jax.grad(lambda f: fit_linear(f, targets, mask).sum())(features)
    assert jnp.all(jnp.isfinite(gradient))
