"""XLand-MiniGrid as environments with tasks: observations, rewards and ends by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xminigrid
from xminigrid.benchmarks import Benchmark
from xminigrid.core.constants import NUM_COLORS, NUM_TILES

import metajax
from metajax import rl
from metajax.rl import xland

FORWARD, RIGHT, PICK_UP = 0, 1, 3


def play(env, task, actions, seed=0):
    first = env.reset(jax.random.key(seed), task)
    _, shown = jax.lax.scan(lambda s, a: (env.step(s, a),) * 2, first, jnp.asarray(actions))
    return first, shown


def task_of(env, seed=0):
    return jax.tree.map(lambda x: x[0], env.sample_tasks(jax.random.key(seed), 1))


def test_the_observation_is_the_cells_in_view():
    env = xland.find_object()
    first = env.reset(jax.random.key(1), task_of(env))
    cells = np.asarray(first.state.observation).reshape(25, 2)
    seen = np.asarray(first.observation).reshape(25, NUM_TILES + NUM_COLORS)
    np.testing.assert_array_equal(seen[:, :NUM_TILES].argmax(1), cells[:, 0])
    np.testing.assert_array_equal(seen[:, NUM_TILES:].argmax(1), cells[:, 1])
    np.testing.assert_array_equal(seen.sum(1), 2)


def test_only_the_first_object_pays():
    env = xland.find_object(size=5, num_objects=1, horizon=40)
    # In a room of 3 x 3 with one object, walking about ends in front of it.
    actions = [FORWARD, PICK_UP, RIGHT, PICK_UP] * 10
    first, shown = play(env, task_of(env), actions)
    assert float(first.reward) == 0
    end = int(np.argmax(shown.done))
    assert shown.done[end]
    assert not shown.reward[:end].any()
    assert float(shown.reward[end]) == pytest.approx(1 - 0.9 * (end + 1) / 40)
    tile = np.asarray(task_of(env)["init_tiles"][0])
    held = np.asarray(shown.state.state.agent.pocket)
    np.testing.assert_array_equal(held[end], tile)
    assert (held[end - 1] != tile).any()
    # The same walk pays nothing if the goal is an object that is not there.
    other = task_of(env)
    other["goal"] = other["goal"].at[1].set(12 if tile[0] != 12 else 11)
    _, nothing = play(env, other, actions)
    np.testing.assert_array_equal(nothing.state.state.agent.pocket[end], tile)
    assert not nothing.done.any()
    assert not nothing.reward.any()


def test_a_trajectory_ends_at_the_goal_or_the_horizon():
    env = xland.find_object(size=5, horizon=12)
    model = rl.CategoricalMLP(env.action_size, hidden=(8,))
    params = model.init(jax.random.key(0), jnp.zeros(env.observation_size))
    found = rl.rollout(env, model.apply, params, task_of(env), jax.random.key(1), 40)
    lengths = np.asarray(found.mask.sum(1)).astype(int)
    reached = np.asarray(found.rewards.sum(1)) > 0
    assert 0 < reached.sum() < 40
    assert (lengths[~reached] == 12).all()
    expected = 1 - 0.9 * lengths[reached] / 12
    np.testing.assert_allclose(found.rewards.sum(1)[reached], expected, rtol=1e-5)
    assert env.horizon == 12


def test_the_tasks_are_objects_of_different_shapes_and_colours():
    tasks = jax.device_get(xland.find_object(num_objects=4).sample_tasks(jax.random.key(0), 500))
    assert tasks["init_tiles"].shape == (500, 4, 2)
    for part, allowed in ((0, xland.SHAPES), (1, xland.COLOURS)):
        drawn = tasks["init_tiles"][..., part]
        assert set(drawn.ravel()) == set(allowed)
        assert all(len(set(row)) == 4 for row in drawn)
    np.testing.assert_array_equal(tasks["goal"][:, 1:3], tasks["init_tiles"][:, 0])
    assert (tasks["goal"][:, 0] == 1).all()  # XLand's code for holding a tile
    assert not tasks["rules"].any()


@pytest.mark.slow
def test_several_episodes_with_a_memory():
    env = rl.trials(xland.find_object(horizon=6), 2)
    model = rl.CategoricalMLP(env.action_size, hidden=(8,))
    init, policy = rl.with_memory(model.init, model.apply, 8)
    params = init(jax.random.key(0), jnp.zeros(env.observation_size))
    metric = rl.episode_returns(env, policy, 5, num_episodes=2)
    returns = metric(params, metajax.Episode(task_of(env), ()), jax.random.key(1))
    assert returns.shape == (2,)
    assert ((returns >= 0) & (returns <= 1)).all()


def test_a_benchmark_and_other_rooms():
    made = xland.find_object().sample_tasks(jax.random.key(0), 10)
    benchmark = Benchmark(made["goal"], made["rules"], made["init_tiles"], jnp.zeros(10, int))
    training, testing = benchmark.split(0.8)
    drawn = xland.rulesets(training)(jax.random.key(1), 200)
    held_out = {tuple(np.ravel(x)) for x in np.asarray(testing.init_tiles)}
    found = {tuple(np.ravel(x)) for x in np.asarray(drawn["init_tiles"])}
    assert len(found) == 8
    assert not found & held_out
    room, params = xminigrid.make("XLand-MiniGrid-R4-13x13", max_steps=20)
    env = xland.from_xland(room, params, xland.rulesets(training))
    assert env.reset(jax.random.key(0), task_of(env)).observation.shape == (625,)


def test_bad_arguments():
    with pytest.raises(ValueError, match="must be those of an environment with rule sets"):
        xland.from_xland(*xminigrid.make("MiniGrid-Empty-5x5"), lambda rng, n: {})
    with pytest.raises(ValueError, match="rulesets: benchmark must be an xminigrid Benchmark"):
        xland.rulesets("trivial-1m")
    with pytest.raises(ValueError, match="num_objects must be at most 5"):
        xland.find_object(num_objects=6)
    with pytest.raises(ValueError, match="size must be at least 5"):
        xland.find_object(size=4)
    with pytest.raises(ValueError, match="horizon must be a positive integer"):
        xland.find_object(horizon=0)
