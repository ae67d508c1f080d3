"""Environments: rewards by hand, tasks, time steps, and actions beyond all bounds."""

import re
import subprocess
import sys

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import rl
from metajax.rl.locomotion import BACKENDS, KINDS, locomotion, physics
from metajax.rl.navigation import Navigation, navigation

SLOW = pytest.mark.slow


def act(env, task, actions, rng=None):
    """Steps through given actions; everything shown, `[steps, ...]`."""
    first = env.reset(jax.random.key(0) if rng is None else rng, task)
    _, shown = jax.lax.scan(lambda s, a: (env.step(s, a),) * 2, first, jnp.asarray(actions))
    return first, shown


@pytest.mark.parametrize(
    ("statement", "needs"),
    [
        ("from metajax.rl import from_gymnax, from_brax", ""),
        ("import metajax.rl.navigation", "navigation needs gymnax"),
        ("import metajax.rl.locomotion", "locomotion needs Brax"),
    ],
)
def test_without_the_engines_an_import_names_the_extra(statement, needs):
    code = f"import sys; sys.modules |= dict.fromkeys(['gymnax', 'brax']); {statement}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if needs:
        message = rf'ImportError: {needs} \(.*\): pip install "metajax\[rl\]"'
        assert re.fullmatch(message, done.stderr.splitlines()[-1])
    else:
        assert done.returncode == 0, done.stderr


def test_navigation_by_hand():
    env, task = navigation(), {"goal": jnp.array([0.3, -0.4])}
    first, shown = act(env, task, [[3.0, -1.0], [1.0, -0.5], [1.0, -2.5], [0.0, -1.5]])
    np.testing.assert_array_equal(first.observation, [0, 0])
    places = np.array([[0.1, -0.1], [0.2, -0.15], [0.3, -0.25], [0.3, -0.35]])
    np.testing.assert_allclose(shown.observation, places, atol=1e-6)
    distances = np.linalg.norm(places - np.array([0.3, -0.4]), axis=1)
    np.testing.assert_allclose(shown.reward, -distances, rtol=1e-5)
    assert not shown.done.any()
    _, squared = act(navigation("squared"), task, [[3.0, -1.0]])
    np.testing.assert_allclose(squared.reward, [-(0.2**2) - 0.3**2], rtol=1e-5)


def test_navigation_ends_within_a_hundredth_of_the_goal_in_both_coordinates():
    env = navigation()
    for place, done in (((0.09, 0.0), False), ((0.095, 0.005), True), ((0.1, 0.011), False)):
        _, shown = act(env, {"goal": jnp.array([0.1, 0.0])}, [np.multiply(place, 10)])
        assert bool(shown.done[0]) is done


def test_navigation_s_goals_and_the_return_of_standing_still():
    env = navigation()
    goals = env.sample_tasks(jax.random.key(0), 1000)["goal"]
    assert goals.shape == (1000, 2)
    assert float(jnp.abs(goals).max()) < 0.5 < float(jnp.abs(goals).max()) + 0.01
    np.testing.assert_allclose(goals.mean(0), 0, atol=0.03)
    assert env.horizon == 100

    def still(params, observations):
        mean = jnp.zeros((*observations.shape[:-1], 2))
        return rl.Normal(mean, mean - 20.0)

    task = {"goal": jnp.array([0.3, 0.4])}
    trajectories = rl.rollout(env, still, (), task, jax.random.key(0), 2)
    assert float(rl.mean_return(trajectories)) == pytest.approx(-50, rel=1e-4)


def test_an_unknown_reward_is_an_error():
    with pytest.raises(ValueError, match="reward must be one of"):
        Navigation("cubed")


def test_any_gymnax_environment_and_no_automatic_reset():
    # A cart pole falls within a few dozen steps of one-sided pushing.
    pole, _ = gymnax.make("CartPole-v1")
    env = rl.from_gymnax(pole, lambda rng, n: {"gravity": jnp.linspace(1.0, 20.0, n)}, horizon=40)
    assert (env.observation_size, env.action_size) == (4, 2)
    tasks = env.sample_tasks(jax.random.key(0), 3)
    step = jax.vmap(lambda task: act(env, task, np.ones(40, int))[1])(tasks)
    done = np.asarray(step.done)
    assert done.any(1).all()
    # Once fallen it stays fallen: nothing resets by itself.
    assert (np.diff(done.astype(int), axis=1) >= 0).all()
    assert not np.allclose(step.observation[0, :5], step.observation[2, :5])
    model = lambda params, x: rl.Categorical(jnp.zeros((*x.shape[:-1], 2)))  # noqa: E731
    trajectories = rl.rollout(env, model, (), {"gravity": jnp.asarray(9.8)}, jax.random.key(0), 6)
    lengths = trajectories.mask.sum(1)
    assert len(set(lengths.tolist())) > 1
    np.testing.assert_array_equal(trajectories.rewards.sum(1), lengths)
    starts = trajectories.observations[:, 0]
    assert len(np.unique(starts[:, 0])) == 6


def test_gymnax_s_actions_beyond_all_bounds():
    pendulum, _ = gymnax.make("Pendulum-v1")
    env = rl.from_gymnax(pendulum, lambda rng, n: {"g": jnp.full(n, 10.0)})
    for environment, task in ((env, {"g": 10.0}), (navigation(), {"goal": jnp.ones(2)})):
        size = environment.action_size
        _, shown = act(environment, task, 1e6 * np.ones((50, size)) * (-1) ** np.arange(size))
        assert np.isfinite(shown.observation).all()
        assert np.isfinite(shown.reward).all()


def test_the_oracle_sees_the_task():
    env = rl.oracle(navigation())
    assert env.observation_size == 4
    first, shown = act(env, {"goal": jnp.array([0.2, 0.3])}, [[1.0, 0.0]])
    np.testing.assert_allclose(first.observation, [0, 0, 0.2, 0.3])
    np.testing.assert_allclose(shown.observation[0], [0.1, 0, 0.2, 0.3], rtol=1e-6)


def test_standardized_observations_have_mean_0_and_variance_1():
    plain = navigation()
    env = rl.standardized(plain, jax.random.key(0), num_trajectories=30)
    task, actions = {"goal": jnp.ones(2)}, np.random.default_rng(0).normal(size=(100, 2))
    (_, before), (first, after) = act(plain, task, actions), act(env, task, actions)
    np.testing.assert_array_equal(after.reward, before.reward)
    # One affine map for every step of every rollout.
    start, shown, places = (np.asarray(x) for x in (first[1], after[1], before[1]))
    slope = (shown[0] - start) / places[0]
    np.testing.assert_allclose(shown, start + slope * places, rtol=1e-3, atol=1e-4)

    def noise(params, observation):
        zeros = jnp.zeros((*observation.shape[:-1], 2))
        return rl.Normal(zeros, zeros)

    seen = rl.rollout(env, noise, (), task, jax.random.key(1), 50)
    counted = np.asarray(seen.observations)[np.asarray(seen.mask) > 0]
    np.testing.assert_allclose(counted.mean(0), 0, atol=0.5)
    np.testing.assert_allclose(counted.std(0), 1, atol=0.4)


def test_standardized_observations_by_hand():
    """A count that ends at 2, so that 0 and 1 count, and a number that never changes."""

    def shown(count):
        observation = jnp.stack([count, jnp.full((), 7.0)])
        return rl.EnvStep(count, observation, jnp.zeros(()), count >= 2)

    plain = rl.Env(
        lambda rng, task: shown(jnp.zeros(())),
        lambda before, action: shown(before.state + 1),
        lambda rng, n: jnp.zeros(n),
        2,
        1,
        horizon=4,
    )
    env = rl.standardized(plain, jax.random.key(0), num_trajectories=3, bound=2.0)
    first, later = act(env, jnp.zeros(()), np.zeros((3, 1)))
    # Mean and deviation are a half each; 3 and 5 are beyond the bound.
    np.testing.assert_allclose(first.observation, [-1, 0], atol=1e-6)
    np.testing.assert_allclose(later.observation, [[1, 0], [2, 0], [2, 0]], atol=1e-6)


def test_every_step_of_gymnax_has_randomness_of_its_own():
    bandit, _ = gymnax.make("GaussianBandit-misc")
    env = rl.from_gymnax(bandit, lambda rng, n: {"sigma_l": jnp.ones(n)})
    _, shown = act(env, {"sigma_l": 1.0}, np.ones(5, int))
    assert len(np.unique(shown.reward)) == 5


def test_the_context_alone_adapts():
    import optax

    import metajax

    env = navigation()
    model = rl.GaussianMLP(2, hidden=(4,))
    init, apply = rl.with_context(model.init, model.apply, 3)
    params = init(jax.random.key(0), jnp.zeros(2))
    np.testing.assert_array_equal(params["context"], np.zeros(3))
    assert params["policy"]["params"]["Dense_0"]["kernel"].shape == (5, 4)
    loop = rl.inner_loop(
        apply,
        rl.sampler(env._replace(horizon=5), apply, 4),
        metajax.adapt_only(optax.sgd(1.0), rl.is_context),
    )
    adapted, _ = loop.collect.apply(
        metajax.MetaParams(params), {"goal": jnp.ones(2)}, jax.random.key(1)
    )
    assert np.abs(adapted["context"]).min() > 0
    jax.tree.map(np.testing.assert_array_equal, adapted["policy"], params["policy"])


@pytest.mark.parametrize("task", ["cheetah_dir", "ant_dir"])
@pytest.mark.parametrize(
    "backend", ["spring", *(pytest.param(b, marks=SLOW) for b in BACKENDS if b != "spring")]
)
def test_the_time_step_is_rllab_s(task, backend):
    seconds = {"cheetah_dir": 0.01, "ant_dir": 0.02}[task]
    assert float(physics(task, backend=backend).dt) == pytest.approx(seconds, rel=1e-6)
    assert float(physics(task, backend=backend, mode="brax").dt) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("name", "mode", "backend", "size"),
    [
        ("cheetah_vel", "rllab", "spring", 20),
        pytest.param("ant_goal", "rllab", "spring", 41, marks=SLOW),
        pytest.param("ant_dir", "brax", "generalized", 27, marks=SLOW),
    ],
)
def test_locomotion_s_rewards_are_recomputed_and_finite_under_extreme_actions(
    name, mode, backend, size
):
    env = locomotion(name, mode=mode, backend=backend)
    assert (env.observation_size, env.horizon) == (size, 200)
    seconds = float(physics(name, mode=mode, backend=backend).dt)
    task = jax.tree.map(lambda x: x[0], env.sample_tasks(jax.random.key(3), 1))
    actions = jax.random.normal(jax.random.key(1), (12, env.action_size))
    actions = actions.at[6:].multiply(1e6)
    with jax.numpy_rank_promotion("allow"):  # Brax's own code
        first, shown = jax.jit(lambda task: act(env, task, actions))(task)
    for x in (shown.observation, shown.reward):
        assert np.isfinite(x).all()
    assert shown.observation.shape == (12, size)
    torso = np.concatenate(
        [first.state.state.pipeline_state.x.pos[:1], shown.state.state.pipeline_state.x.pos[:, 0]]
    )
    velocity = np.diff(torso[:, 0]) / seconds
    square = (np.clip(actions, -1, 1) ** 2).sum(1)
    if name == "cheetah_vel":
        expected = -np.abs(velocity - task["velocity"]) - 0.05 * square
    elif name == "ant_goal":
        distance = np.abs(torso[1:, :2] - np.asarray(task["goal"])).sum(1)
        expected = 4 - distance - 0.005 * square + 0.05
    else:
        expected = task["direction"] * velocity - 0.5 * square + 1.0
    np.testing.assert_allclose(shown.reward, expected, atol=2e-3)
    if name.startswith("ant"):
        height = torso[1:, 2]
        np.testing.assert_array_equal(shown.done, (height < 0.2) | (height > 1.0))
    else:
        assert not shown.done.any()
        np.testing.assert_allclose(shown.observation[:, -3:], torso[1:], rtol=1e-5, atol=1e-6)


def test_tasks_of_locomotion():
    rng = jax.random.key(0)
    directions = KINDS["cheetah_dir"].sample_tasks(rng, 100)["direction"]
    assert set(np.asarray(directions).tolist()) == {-1.0, 1.0}
    for name, entry, low, high in (
        ("cheetah_vel", "velocity", 0, 2),
        ("ant_vel", "velocity", 0, 3),
        ("ant_goal", "goal", -3, 3),
    ):
        values = KINDS[name].sample_tasks(rng, 500)[entry]
        assert low <= values.min() < low + 0.1
        assert high - 0.1 < values.max() <= high
    position, velocity = jnp.array([1.0, 2.0, 0.5]), jnp.array([0.7, 0.0, 0.0])
    assert float(KINDS["ant_vel"].gain(position, velocity, {"velocity": 1.0})) == pytest.approx(0.7)


@pytest.mark.parametrize("arguments", [{"task": "cheetah"}, {"mode": "gym"}, {"backend": "bullet"}])
def test_unknown_choices_are_errors(arguments):
    with pytest.raises(ValueError, match="must be one of"):
        locomotion(**{"task": "ant_dir", **arguments})


@SLOW
def test_any_brax_environment_with_its_own_reward():
    import brax.envs

    pendulum = brax.envs.get_environment("inverted_pendulum", backend="generalized")
    env = rl.from_brax(pendulum, lambda rng, n: jnp.zeros(n), horizon=7)
    state = pendulum.reset(jax.random.key(0))
    theirs = jax.jit(pendulum.step)(state, jnp.array([0.3]))
    _, ours = jax.jit(lambda: act(env, jnp.zeros(()), [[0.3]]))()
    np.testing.assert_allclose(ours.observation[0], theirs.obs, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours.reward[0], theirs.reward)
    assert env.horizon == 7


@pytest.mark.usefixtures("float64")
def test_gymnax_keeps_float64():
    env = navigation()
    task = jax.tree.map(lambda x: x[0], env.sample_tasks(jax.random.key(0), 1))
    after = env.step(env.reset(jax.random.key(1), task), jnp.asarray([0.1, 1 / 3 * 0.1]))
    assert after.observation.dtype == after.reward.dtype == jnp.float64
    np.testing.assert_allclose(after.observation, [0.01, 0.01 / 3], rtol=1e-12)
    distance = np.linalg.norm(np.asarray(after.observation) - np.asarray(task["goal"]))
    np.testing.assert_allclose(after.reward, -distance, rtol=1e-12)
