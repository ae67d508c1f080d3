"""Environments of the tests."""

import jax
import jax.numpy as jnp

from metajax import rl


def chase(horizon=5, broken_beyond=None):
    """A point that moves by a tenth of its action and is paid for being near its goal."""

    def shown(position, goal):
        reward = -jnp.sum((position - goal) ** 2)
        if broken_beyond is not None:
            reward = jnp.where(goal[0] > broken_beyond, jnp.nan, reward)
        return rl.EnvStep((position, goal), position, reward, jnp.asarray(False))

    def reset(rng, task):
        return shown(jnp.zeros(2), task["goal"])._replace(reward=jnp.zeros(()))

    def step(before, action):
        position, goal = before.state
        return shown(position + 0.3 * jnp.clip(action, -1.0, 1.0), goal)

    def sample_tasks(rng, n):
        return {"goal": jax.random.rademacher(rng, (n, 2), jnp.float32)}

    return rl.Env(reset, step, sample_tasks, 2, 2, horizon)
