"""Policies with a memory, and several episodes of one task in succession."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

import metajax
from metajax import rl
from tests.rl.environments import chase
from tests.rl.test_rl_rollout import counter


def bandit():
    """One pull: the arm that the task names pays 1."""

    def reset(rng, task):
        return rl.EnvStep(task, jnp.zeros(1), jnp.zeros(()), jnp.asarray(False))

    def step(before, action):
        return before._replace(reward=(action == before.state["arm"]).astype(float))

    def sample_tasks(rng, n):
        return {"arm": jax.random.randint(rng, (n,), 0, 2)}

    return rl.Env(reset, step, sample_tasks, 1, 2, horizon=1, discrete=True)


def with_memory(env, size=8):
    model = rl.CategoricalMLP(env.action_size, hidden=(8,))
    if not env.discrete:
        model = rl.GaussianMLP(env.action_size, hidden=(8,))
    init, policy = rl.with_memory(model.init, model.apply, size)
    return policy, init(jax.random.key(0), jnp.zeros(env.observation_size))


def task_of(env):
    return jax.tree.map(lambda x: x[0], env.sample_tasks(jax.random.key(3), 1))


def test_the_memory_is_that_of_a_gru_by_hand():
    policy, params = with_memory(chase())
    observations = jax.random.normal(jax.random.key(1), (3, 5, 2))
    found = policy(params, observations)
    gru, head = jax.tree.map(np.asarray, (params["memory"]["params"], params["policy"]["params"]))

    def dense(name, x):
        return x @ gru[name]["kernel"] + gru[name].get("bias", 0)

    h = np.zeros((3, 8))
    for t in range(5):
        x = np.asarray(observations[:, t])
        r = special.expit(dense("ir", x) + dense("hr", h))
        z = special.expit(dense("iz", x) + dense("hz", h))
        n = np.tanh(dense("in", x) + r * dense("hn", h))
        h = (1 - z) * n + z * h
        hidden = np.concatenate([x, h], axis=-1) @ head["Dense_0"]["kernel"]
        hidden = np.maximum(hidden + head["Dense_0"]["bias"], 0)
        mean = hidden @ head["Dense_1"]["kernel"] + head["Dense_1"]["bias"]
        np.testing.assert_allclose(found.mean[:, t], mean, atol=1e-5)


def test_a_rollout_passes_the_memory_on_and_starts_anew():
    env = chase(horizon=6)
    policy, params = with_memory(env)
    found = rl.rollout(env, policy, params, task_of(env), jax.random.key(1), 4)
    whole = policy(params, found.observations)
    np.testing.assert_allclose(found.distribution.mean, whole.mean, atol=1e-6)
    # Each trajectory by itself, and with another axis in front.
    alone = policy(params, found.observations[2])
    np.testing.assert_allclose(alone.mean, whole.mean[2], atol=1e-6)
    more = policy(params, found.observations[None])
    np.testing.assert_allclose(more.mean[0], whole.mean, atol=1e-6)
    # What came first matters later.
    changed = policy(params, found.observations.at[:, 0].add(1.0))
    assert float(jnp.abs(changed.mean - whole.mean)[:, -1].max()) > 1e-4


def test_a_plain_policy_is_one_without_a_memory():
    env = chase()
    model = rl.GaussianMLP(env.action_size, hidden=(4,))
    params = model.init(jax.random.key(0), jnp.zeros(2))
    plain = rl.Recurrent(lambda p, shape: (), lambda p, m, x: (m, model.apply(p, x)))
    ours, theirs = (
        rl.rollout(env, policy, params, task_of(env), jax.random.key(1), 4)
        for policy in (model.apply, plain)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_maml_adapts_a_policy_with_a_memory():
    env = chase(horizon=4)
    policy, params = with_memory(env)
    loop = rl.inner_loop(policy, rl.sampler(env, policy, 6), optax.sgd(0.3), 2)
    start = metajax.MetaParams(params)
    collected = rl.collect(loop, start, task_of(env), jax.random.key(1))
    again = rl.replay(loop, start, collected.support)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), again, collected.policies
    )
    moved = jax.tree.map(lambda x: jnp.abs(x[-1] - x[0]).max(), again["memory"])
    assert max(map(float, jax.tree.leaves(moved))) > 1e-6


@pytest.mark.slow
def test_a_trust_region_learns_a_policy_with_a_memory():
    env = chase(horizon=4)
    policy, params = with_memory(env)
    loop = rl.inner_loop(policy, rl.sampler(env, policy, 6), optax.sgd(0.3), 2)
    learner = rl.maml_trpo(loop, max_kl=0.01)
    state = learner.init(params)
    episodes = metajax.tasks.meta_batch(rl.Tasks(env.sample_tasks), 3, jax.random.key(2))
    _, metrics = jax.jit(learner.update)(state, episodes, jax.random.key(3))
    assert 0 < float(metrics["kl"]) <= 0.01
    assert float(metrics["improvement"]) > 0


def test_a_trial_is_several_episodes_of_one_task():
    # Three steps an episode; the observations of `counter` are its count and its start.
    env = rl.trials(counter(horizon=6, end=3.0), 2)
    assert (env.horizon, env.observation_size, env.action_size) == (12, 2 + 3 + 1 + 1, 3)
    policy, params = with_memory(env)
    found = rl.rollout(env, policy, params, task_of(env), jax.random.key(1), 4)
    np.testing.assert_array_equal(found.mask, np.repeat([[1.0] * 6 + [0.0] * 6], 4, axis=0))
    assert not found.failures.any()
    seen = found.observations[:, :6]
    np.testing.assert_array_equal(seen[..., 0], np.tile([0, 1, 2, 0, 1, 2], (4, 1)))
    np.testing.assert_array_equal(seen[:, 1:, 2:5], found.actions[:, :5])
    np.testing.assert_array_equal(seen[..., 5], np.tile([0, 11, 12, 13, 11, 12], (4, 1)))
    np.testing.assert_array_equal(seen[..., 6], np.tile([0, 0, 0, 1, 0, 0], (4, 1)))
    np.testing.assert_array_equal(seen[:, 0, 2:], 0)
    # Each episode starts anew, and stays where it started.
    starts = np.asarray(seen[..., 1])
    assert (starts[:, :3] == starts[:, :1]).all()
    assert (starts[:, 3:] == starts[:, 3:4]).all()
    assert len(np.unique(starts)) == 8


def test_a_time_limit_ends_an_episode_and_returns_are_those_of_each():
    env = rl.trials(counter(horizon=4), 3)
    policy, params = with_memory(env)
    found = rl.rollout(env, policy, params, task_of(env), jax.random.key(1), 4)
    assert found.mask.all()
    np.testing.assert_array_equal(
        found.observations[0, :, -1], [0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]
    )
    metric = rl.episode_returns(env, policy, 4, num_episodes=3)
    episode = metajax.Episode(task_of(env), ())
    returns = metric(params, episode, jax.random.key(1))
    np.testing.assert_allclose(returns, [11 + 12 + 13 + 14] * 3)


def test_features_of_a_trial_count_steps_and_episodes():
    ended = jnp.array([[0, 0, 1, 0, 0, 1, 0], [0, 1, 0, 0, 0, 0, 1]], jnp.float32)
    found = np.asarray(rl.trial_features(jnp.stack([jnp.zeros((2, 7)), ended], axis=-1)))
    assert found.shape == (2, 7, 9)
    np.testing.assert_allclose(found[0, :, 0], np.arange(7) / 100)
    np.testing.assert_array_equal(found[..., 4], [[0, 0, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 2]])
    since = np.array([[0, 1, 0, 1, 2, 0, 1], [0, 0, 1, 2, 3, 4, 0]]) / 100
    for power, column in ((1, 6), (2, 7), (3, 8)):
        np.testing.assert_allclose(found[..., column], since**power, rtol=1e-5, atol=1e-9)


def test_a_failure_within_a_trial_shows():
    env = rl.trials(counter(horizon=4, end=2.0, poison=2.0), 3)
    policy, params = with_memory(env)
    found = rl.rollout(env, policy, params, task_of(env), jax.random.key(1), 4)
    # The second step ends the episode, with an observation that is not a number.
    np.testing.assert_array_equal(found.failures, np.ones(4))
    np.testing.assert_array_equal(found.mask[0], [1] + [0] * 11)


def test_rl2_learns_to_explore_once_and_then_to_pull_the_arm_that_pays():
    env = rl.trials(bandit(), 4)
    assert env.observation_size == 1 + 2 + 1 + 1
    policy, params = with_memory(env, 16)
    loop = rl.inner_loop(policy, rl.sampler(env, policy, 20), optax.identity(), num_steps=0)
    learner = rl.promp(loop, optax.adam(1e-2))
    tasks = rl.Tasks(env.sample_tasks)

    @jax.jit
    def train(state, rng):
        def body(state, rng):
            task_rng, rng = jax.random.split(rng)
            episodes = metajax.tasks.meta_batch(tasks, 20, task_rng)
            return learner.update(state, episodes, rng)[0], ()

        return jax.lax.scan(body, state, jax.random.split(rng, 60))[0]

    metric = rl.episode_returns(env, policy, 20, num_episodes=4)
    episodes = metajax.tasks.meta_batch(tasks, 50, jax.random.key(1))

    def returns(state):
        scores = metajax.evaluate(loop.collect, metric, state, episodes, jax.random.key(2))
        return np.asarray(scores["mean"][0])

    before = learner.init(params)
    np.testing.assert_allclose(returns(before), 0.5, atol=0.1)
    after = returns(train(before, jax.random.key(3)))
    assert abs(after[0] - 0.5) < 0.1
    assert after[1:].min() > 0.9


def test_a_bonus_climbs_the_entropy():
    # Without rewards there are no advantages: what is left is the gradient of the entropy.
    env = bandit()._replace(step=lambda before, action: before, action_size=3)

    def policy(logits, x):
        return rl.Categorical(jnp.broadcast_to(logits, (*x.shape[:-1], 3)))

    loop = rl.inner_loop(policy, rl.sampler(env, policy, 4), optax.identity(), num_steps=0)
    learner = rl.promp(loop, optax.sgd(0.5), num_epochs=1, entropy_bonus=0.2)
    logits = np.array([0.3, -1.0, 2.0], np.float32)
    episodes = metajax.tasks.meta_batch(rl.Tasks(env.sample_tasks), 3, jax.random.key(0))
    state, _ = learner.update(learner.init(jnp.asarray(logits)), episodes, jax.random.key(1))
    p = special.softmax(logits)
    entropy = -np.sum(p * np.log(p))
    expected = logits + 0.5 * 0.2 * -p * (np.log(p) + entropy)
    np.testing.assert_allclose(state.meta_params.params, expected, rtol=1e-5)


def test_bad_arguments():
    policy, _ = with_memory(chase())
    init = rl.GaussianMLP(2).init
    with pytest.raises(ValueError, match="with_context: the policy has a memory already"):
        rl.with_context(init, policy, 3)
    with pytest.raises(ValueError, match="with_memory: the policy has a memory already"):
        rl.with_memory(init, policy, 3)
    with pytest.raises(ValueError, match="with_memory: memory_size must be a positive integer"):
        rl.with_memory(init, rl.GaussianMLP(2).apply, 0)
    with pytest.raises(ValueError, match="trials: num_episodes must be a positive integer"):
        rl.trials(chase(), 0)
    with pytest.raises(ValueError, match="trials: env must be"):
        rl.trials(chase, 2)
    growing = rl.Recurrent(
        lambda params, shape: jnp.zeros((*shape, 1)),
        lambda params, m, x: (jnp.concatenate([m, m], -1), rl.Normal(x, x)),
    )
    with pytest.raises(ValueError, match="must keep the structure, shapes and types of its memory"):
        rl.rollout(chase(), growing, (), task_of(chase()), jax.random.key(1), 2)
