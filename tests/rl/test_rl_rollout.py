"""Rollouts, baselines and advantages on small environments whose numbers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import metajax
from metajax import rl
from metajax.rl.rollout import fit_linear


def counter(horizon=6, end=None, poison=None):
    """Counts its steps; ends, or turns to NaN, at the count that the task says."""

    def shown(state, reward, done):
        count, start, task = state
        bad = (count >= task["poison"]) if poison else False
        observation = jnp.where(bad, jnp.nan, jnp.stack([count, start]))
        return rl.EnvStep(state, observation, reward, done)

    def reset(rng, task):
        start = jax.random.uniform(rng)
        return shown((jnp.zeros(()), start, task), jnp.zeros(()), jnp.asarray(False))

    def step(before, action):
        count, start, task = before.state
        count = count + 1
        return shown((count, start, task), 10.0 + count, count >= task["end"])

    def sample_tasks(rng, n):
        return {"end": jnp.full(n, end or 99.0), "poison": jnp.full(n, poison or 99.0)}

    return rl.Env(reset, step, sample_tasks, 2, 3, horizon)


MODEL = rl.GaussianMLP(3, hidden=(4,))
PARAMS = MODEL.init(jax.random.key(0), jnp.zeros(2))


def run(env, n=5, **task):
    tasks = jax.tree.map(lambda x: x[0], env.sample_tasks(jax.random.key(0), 1))
    roll = jax.jit(lambda task, rng: rl.rollout(env, MODEL.apply, PARAMS, task, rng, n))
    return roll({**tasks, **task}, jax.random.key(1))


def test_a_trajectory_has_the_horizon_s_steps_and_starts_anew():
    trajectories = run(counter())
    np.testing.assert_array_equal(trajectories.mask, np.ones((5, 6)))
    np.testing.assert_array_equal(
        trajectories.observations[..., 0], np.tile(np.arange(6.0), (5, 1))
    )
    np.testing.assert_array_equal(trajectories.rewards, np.tile(np.arange(11.0, 17), (5, 1)))
    starts = np.asarray(trajectories.observations[..., 1])
    np.testing.assert_array_equal(starts, np.tile(starts[:, :1], 6))
    assert len(set(starts[:, 0])) == 5
    assert trajectories.actions.shape == (5, 6, 3)
    assert len(np.unique(trajectories.actions)) == 5 * 6 * 3
    assert float(rl.mean_return(trajectories)) == pytest.approx(sum(range(11, 17)))


def test_after_termination_nothing_counts():
    trajectories = run(counter(), end=2.0)
    np.testing.assert_array_equal(trajectories.mask, np.tile([1, 1, 0, 0, 0, 0], (5, 1)))
    assert float(rl.mean_return(trajectories)) == 11 + 12
    assert not trajectories.failures.any()
    trajectories = trajectories._replace(advantages=rl.standardized_advantages(trajectories))
    after_the_end = trajectories.mask[..., None] == 0
    spoiled = trajectories._replace(
        rewards=trajectories.rewards + 1e3 * (1 - trajectories.mask),
        observations=trajectories.observations + 7.0 * after_the_end,
        actions=jnp.where(after_the_end, 1e30, trajectories.actions),
    )
    moved = jax.tree.map(lambda x: x + 0.1, PARAMS)
    np.testing.assert_array_equal(
        rl.standardized_advantages(spoiled), rl.standardized_advantages(trajectories)
    )
    assert float(rl.mean_return(spoiled)) == 11 + 12
    for surrogate in rl.SURROGATES.values():
        gradients = [
            jax.jit(jax.grad(lambda p, t, s=surrogate: s(MODEL.apply, p, t)))(moved, t)
            for t in (trajectories, spoiled)
        ]
        jax.tree.map(np.testing.assert_array_equal, *gradients)


def test_physics_that_fails_is_masked_and_counted():
    trajectories = run(counter(poison=1.0), poison=3.0)
    np.testing.assert_array_equal(trajectories.mask, np.tile([1, 1, 0, 0, 0, 0], (5, 1)))
    np.testing.assert_array_equal(trajectories.failures, np.ones(5))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(trajectories))
    from_the_start = run(counter(poison=1.0), poison=0.0)
    assert not from_the_start.mask.any()
    assert from_the_start.failures.all()
    advantages = rl.standardized_advantages(from_the_start)
    np.testing.assert_array_equal(advantages, np.zeros((5, 6)))
    loss = rl.likelihood_ratio(MODEL.apply, PARAMS, from_the_start._replace(advantages=advantages))
    assert float(loss) == 0.0


def test_a_trajectory_that_is_over_at_its_start_has_no_steps():
    env = counter()

    def reset(rng, task):
        return env.reset(rng, task)._replace(done=task["end"] < 1)

    trajectories = run(env._replace(reset=reset), end=0.0)
    assert not trajectories.mask.any()
    assert not trajectories.failures.any()
    assert float(rl.mean_return(trajectories)) == 0


def test_failed_trajectories_have_no_part_in_the_mean_return():
    rewards = jnp.array([[1.0, 2.0], [50.0, 0.0], [3.0, 9.0]])
    mask = jnp.array([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    trajectories = rl.Trajectories((), (), rewards, mask, (), (), jnp.array([0.0, 1.0, 0.0]))
    assert float(rl.mean_return(trajectories)) == 3.0


def test_the_sampler_s_advantages_are_those_of_its_rollouts():
    env, rng = counter(), jax.random.key(2)
    task = {"end": jnp.asarray(99.0), "poison": jnp.asarray(99.0)}
    settings = {"discount": 0.8, "gae_lambda": 0.3}

    @jax.jit
    def both(rng):
        sampled = rl.sampler(env, MODEL.apply, 4, **settings)(PARAMS, task, rng)
        rolled = rl.rollout(env, MODEL.apply, PARAMS, task, rng, 4)
        return sampled, rolled, rl.standardized_advantages(rolled, **settings)

    sampled, rolled, advantages = both(rng)
    jax.tree.map(np.testing.assert_array_equal, sampled._replace(advantages=()), rolled)
    np.testing.assert_array_equal(sampled.advantages, advantages)


@pytest.mark.usefixtures("float64")
def test_discount_and_lambda_can_be_swept_and_differentiated():
    """Through one adaptation step: what is sampled before it depends on neither."""
    rng, task = jax.random.key(2), {"end": jnp.asarray(99.0), "poison": jnp.asarray(99.0)}
    model = rl.GaussianMLP(3, hidden=())
    start = metajax.MetaParams(model.init(rng, jnp.zeros(2)))

    def adapted(x):
        sample = rl.sampler(counter(4), model.apply, 3, discount=x[0], gae_lambda=x[1])
        loop = rl.inner_loop(model.apply, sample, optax.sgd(0.1))
        return loop.collect.apply(start, task, rng)[0]["params"]["log_std"][0]

    x, eps = np.array([0.9, 0.7]), 1e-5
    points = jnp.array([x, x + [eps, 0], x - [eps, 0], x + [0, eps], x - [0, eps]])
    swept = jax.jit(jax.vmap(adapted))(points)
    assert float(swept[0]) == pytest.approx(float(jax.jit(lambda: adapted(x))()), rel=1e-6)
    differences = (swept[1::2] - swept[2::2]) / (2 * eps)
    assert jnp.all(jnp.abs(differences) > 1e-3)
    np.testing.assert_allclose(jax.jit(jax.grad(adapted))(jnp.asarray(x)), differences, rtol=1e-3)


def test_draws_have_the_frequencies_of_their_distribution():
    rng, count = jax.random.key(0), 100_000
    ones = jnp.ones((count, 1))
    draws = rl.Normal(jnp.array([[1.0, -2.0]]) * ones, jnp.log(jnp.array([[0.5, 3.0]])) * ones)
    draws = np.asarray(draws.sample(rng))
    np.testing.assert_allclose(draws.mean(0), [1.0, -2.0], atol=0.05)
    np.testing.assert_allclose(draws.std(0), [0.5, 3.0], rtol=0.02)
    p = np.array([0.1, 0.6, 0.3])
    actions = rl.Categorical(jnp.log(p)[None] * ones).sample(rng)
    np.testing.assert_allclose(np.bincount(actions, minlength=3) / count, p, atol=0.01)


def test_the_ratio_is_1_and_the_divergence_0_right_after_sampling():
    trajectories = run(counter())
    trajectories = trajectories._replace(advantages=rl.standardized_advantages(trajectories))
    new = MODEL.apply(PARAMS, trajectories.observations)
    np.testing.assert_allclose(trajectories.distribution.kl(new), 0.0, atol=1e-6)
    ones = trajectories._replace(advantages=jnp.ones((5, 6)))
    assert float(rl.likelihood_ratio(MODEL.apply, PARAMS, ones)) == pytest.approx(-1.0, abs=1e-6)


def test_probabilities_are_joint_over_the_action():
    rng = np.random.default_rng(0)
    mean, log_std, action = rng.normal(size=(3, 4, 3)).astype(np.float32)
    ours, other = rl.Normal(mean, log_std), rl.Normal(mean + 0.3, log_std - 0.2)
    scale = np.exp(log_std)
    np.testing.assert_allclose(
        ours.log_prob(action), stats.norm.logpdf(action, mean, scale).sum(-1), rtol=1e-5
    )
    np.testing.assert_allclose(ours.entropy(), stats.norm.entropy(mean, scale).sum(-1), rtol=1e-5)
    draws = stats.norm.rvs(mean, scale, (200_000, 4, 3), random_state=1)
    difference = jax.vmap(lambda x: ours.log_prob(x) - other.log_prob(x))(draws)
    # KL(old || new) is the mean of the log-ratio under the old one.
    np.testing.assert_allclose(ours.kl(other), difference.mean(0), atol=0.01)
    assert not np.allclose(ours.kl(other), other.kl(ours), atol=0.01)


def test_categorical_is_scipy_s():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))
    p = np.asarray(jax.nn.softmax(logits))
    q = np.asarray(jax.nn.softmax(logits[::-1]))
    ours = rl.Categorical(logits)
    np.testing.assert_allclose(ours.entropy(), stats.entropy(p, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(
        ours.kl(rl.Categorical(logits[::-1])), stats.entropy(p, q, axis=-1), rtol=1e-4, atol=1e-7
    )
    actions = jnp.array([0, 2, 1, 0])
    np.testing.assert_allclose(ours.log_prob(actions), np.log(p[range(4), actions]), rtol=1e-5)


def test_returns_and_advantages_by_hand():
    np.testing.assert_allclose(
        rl.discounted_sums(jnp.array([[1.0, 2.0, 4.0]]), 0.5), [[3.0, 4.0, 4.0]]
    )
    rng = np.random.default_rng(0)
    n, horizon, gamma, lam = 4, 5, 0.9, 0.7
    observations = rng.normal(size=(n, horizon, 2)).astype(np.float32)
    rewards = rng.normal(size=(n, horizon)).astype(np.float32)
    lengths = [5, 3, 5, 1]
    mask = np.array([[t < length for t in range(horizon)] for length in lengths], np.float32)
    trajectories = rl.Trajectories(observations, (), rewards, mask, (), (), np.zeros(n))

    returns = np.zeros((n, horizon))
    for i, t in np.ndindex(n, horizon):
        returns[i, t] = sum(gamma ** (k - t) * rewards[i, k] * mask[i, k] for k in range(t, 5))
    features = np.asarray(rl.observation_features(jnp.asarray(observations)))
    weights = fit_linear(
        jnp.asarray(features), jnp.asarray(returns, jnp.float32), jnp.asarray(mask)
    )
    values = features @ np.asarray(weights) * mask
    advantages = np.zeros((n, horizon))
    for i, t in np.ndindex(n, horizon):
        for k in range(t, lengths[i]):
            following = values[i, k + 1] if k + 1 < horizon else 0.0
            delta = rewards[i, k] + gamma * following - values[i, k]
            advantages[i, t] += (gamma * lam) ** (k - t) * delta
    kept = advantages[mask > 0]
    expected = np.where(mask > 0, (advantages - kept.mean()) / kept.std(), 0.0)
    ours = rl.standardized_advantages(trajectories, discount=gamma, gae_lambda=lam)
    np.testing.assert_allclose(ours, expected, atol=2e-4)
    assert not ours[mask == 0].any()
    assert ours[mask > 0].mean() == pytest.approx(0, abs=1e-5)
    assert ours[mask > 0].std() == pytest.approx(1, abs=1e-4)


def test_time_counts_within_each_trajectory_and_observations_are_clipped():
    features = np.asarray(rl.observation_features(jnp.full((3, 200, 1), 50.0)))
    assert features.shape == (3, 200, 6)
    np.testing.assert_allclose(features[..., 0], 10.0)
    np.testing.assert_allclose(features[..., 1], 100.0)
    for trajectory in features:
        np.testing.assert_allclose(trajectory[:, 2], np.arange(200) / 100, rtol=1e-6)
        np.testing.assert_allclose(trajectory[:, 4], (np.arange(200) / 100) ** 3, rtol=1e-5)
    np.testing.assert_allclose(features[..., 5], 1.0)


def test_the_baseline_of_many_collinear_features_is_finite_and_fits():
    # Pictures: one-hot vectors, whose squares are themselves. More features than steps.
    chosen = jax.random.randint(jax.random.key(0), (4, 30, 25), 0, 25)
    features = rl.observation_features(jax.nn.one_hot(chosen, 25).reshape(4, 30, 625))
    targets = jax.random.normal(jax.random.key(1), (4, 30))
    for kept in (jnp.ones((4, 30)), jnp.ones((4, 30)).at[:, 1:].set(0)):
        weights = fit_linear(features, targets, kept)
        assert jnp.isfinite(weights).all()
        np.testing.assert_allclose((features @ weights) * kept, targets * kept, atol=0.05)


def test_features_of_time_alone():
    pictures = jnp.ones((3, 20, 7))
    found = rl.time_features(pictures)
    np.testing.assert_array_equal(found, rl.observation_features(pictures)[..., 14:])
    trajectories = run(counter())
    plain = rl.standardized_advantages(trajectories)
    by_time = rl.standardized_advantages(trajectories, features=rl.time_features)
    assert np.isfinite(by_time).all()
    assert not np.allclose(by_time, plain, atol=1e-3)
    policy = rl.sampler(counter(), MODEL.apply, 5, features=rl.time_features)
    task = jax.tree.map(lambda x: x[0], counter().sample_tasks(jax.random.key(0), 1))
    sampled = policy(PARAMS, task, jax.random.key(1)).advantages
    np.testing.assert_allclose(sampled, by_time, atol=1e-5)
    with pytest.raises(ValueError, match="standardized_advantages: features must be"):
        rl.standardized_advantages(trajectories, features=3)


@pytest.mark.usefixtures("float64")
def test_the_baseline_is_ridge_regression_by_lstsq():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(6, 7, 4)) * np.array([1.0, 100.0, 0.01, 0.0])
    targets, mask = rng.normal(size=(6, 7)), (rng.uniform(size=(6, 7)) < 0.8).astype(float)
    ours = fit_linear(jnp.asarray(features), jnp.asarray(targets), jnp.asarray(mask), 1e-3)
    rows, y = features[mask > 0], targets[mask > 0]
    scale = np.sqrt((rows**2).mean(0))
    scale[3] = 1.0
    penalty = np.sqrt(1e-3 * len(rows)) * np.eye(4)
    solved, *_ = np.linalg.lstsq(
        np.concatenate([rows / scale, penalty]), np.concatenate([y, np.zeros(4)]), rcond=None
    )
    np.testing.assert_allclose(ours, solved / scale, rtol=1e-9, atol=1e-12)


def test_the_baseline_survives_collinear_features_in_float32():
    ones = jnp.ones((20, 100, 1))
    features = jnp.concatenate([0.3 * ones, 0.09 * ones, -0.4 * ones, ones], axis=-1)
    targets = jnp.linspace(-40.0, 0.0, 100)[None] * jnp.ones((20, 1))
    weights = fit_linear(features, targets, jnp.ones((20, 100)))
    np.testing.assert_allclose(features @ weights, -20.0, rtol=1e-3)


def test_the_standard_deviation_has_a_floor():
    model = rl.GaussianMLP(2, hidden=(), init_log_std=-1.0, min_log_std=-0.5)
    params = model.init(jax.random.key(0), jnp.zeros(3))
    assert params["params"]["log_std"].tolist() == [-1.0, -1.0]
    np.testing.assert_allclose(model.apply(params, jnp.ones((4, 3))).log_std, -0.5)


def test_the_policy_is_numpy_s_network():
    rng = np.random.default_rng(0)
    shapes = {"Dense_0": (3, 5), "Dense_1": (5, 4), "Dense_2": (4, 2)}
    weights = {name: (rng.normal(size=s), rng.normal(size=s[1])) for name, s in shapes.items()}
    params = {name: {"kernel": w, "bias": b} for name, (w, b) in weights.items()}
    params["log_std"] = np.array([0.3, -0.4])
    x = rng.normal(size=(6, 7, 3))
    found = rl.GaussianMLP(2, hidden=(5, 4)).apply({"params": params}, jnp.asarray(x))
    for name, (w, b) in weights.items():
        x = x @ w + b
        x = x if name == "Dense_2" else np.maximum(x, 0)
    np.testing.assert_allclose(found.mean, x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.log_std, np.broadcast_to([0.3, -0.4], x.shape), rtol=1e-6)
