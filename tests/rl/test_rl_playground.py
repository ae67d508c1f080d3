"""Robots of MuJoCo Playground, where it is installed: it is too large for the default tests."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from metajax import rl

module = pytest.importorskip(
    "metajax.rl.playground", reason="the extra `playground`", exc_type=ImportError
)
TASKS, playground, registry = module.TASKS, module.playground, module.registry


@pytest.fixture(autouse=True)
def _broadcasting():
    with jax.numpy_rank_promotion("allow"):  # of Playground's physics
        yield


@pytest.mark.parametrize("task", TASKS)
def test_the_reward_is_that_of_the_velocity_in_mujoco(task):
    env = playground(task)
    tasks = jax.tree.map(lambda x: x[0], env.sample_tasks(jax.random.key(1), 1))
    step = jax.jit(env.step)
    after = jax.jit(env.reset)(jax.random.key(0), tasks)
    action = jnp.linspace(-2.0, 1.0, env.action_size)
    for _ in range(5):
        after = step(after, action)
    state = after.state.state.data
    model = registry.load(TASKS[task][0]).mj_model
    data = mujoco.MjData(model)
    data.qpos, data.qvel = np.asarray(state.qpos), np.asarray(state.qvel)
    mujoco.mj_forward(model, data)
    speed = data.sensor("torso_subtreelinvel").data[0]
    gain = -abs(speed - float(tasks.get("velocity", 0)))
    if "direction" in tasks:
        gain = float(tasks["direction"]) * speed
    cost = 0.05 * np.sum(np.clip(action, -1, 1) ** 2)
    # Playground's sensor is that of the state before the last of its physics steps.
    assert abs(speed) > 1e-3
    assert float(after.reward) == pytest.approx(gain - cost, abs=0.1)
    assert not after.done


def test_a_policy_is_rolled_out_in_tasks():
    env = playground("cheetah_dir", horizon=5)
    model = rl.GaussianMLP(env.action_size)
    params = model.init(jax.random.key(0), jnp.zeros(env.observation_size))

    def gains(direction):
        task = {"direction": jnp.asarray(direction)}
        found = rl.rollout(env, model.apply, params, task, jax.random.key(1), 4)
        cost = 0.05 * jnp.sum(jnp.clip(found.actions, -1, 1) ** 2, axis=-1)
        return found.rewards + cost

    forward, backward = (jax.jit(gains)(direction) for direction in (1.0, -1.0))
    assert float(jnp.abs(forward).max()) > 0.1
    np.testing.assert_allclose(forward, -backward, atol=1e-4)


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match=r"task must be one of \('cheetah_vel'"):
        playground("ant_vel")
