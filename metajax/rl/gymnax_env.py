"""Any gymnax environment, its tasks being some of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.base import Array, Key, PyTree
from metajax.rl.base import Env, EnvStep, Task


class GymnaxState(NamedTuple):
    """The environment's own state, its parameters with the task's in place, and its key."""

    state: PyTree
    params: PyTree
    rng: Key


def from_gymnax(
    environment: Any,
    sample_tasks: Callable[[Key, int], dict[str, Array]],
    *,
    params: Any = None,
    horizon: int | None = None,
) -> Env:
    """Makes an `Env` of a gymnax environment.

    A task is a dict of entries of the environment's parameters. `step_env` and `reset_env` are
    used directly, so that nothing resets by itself; gymnax's time limit is the horizon.

    Args:
      environment: a `gymnax` environment with array observations.
      sample_tasks: `(rng, n) -> {parameter: [n, ...]}`.
      params: the parameters that tasks leave alone; the environment's defaults without.
      horizon: steps of a trajectory; `params.max_steps_in_episode` without.

    Example:

    >>> import gymnax, jax
    >>> from metajax.rl import from_gymnax
    >>> pendulum, _ = gymnax.make("Pendulum-v1")
    >>> env = from_gymnax(pendulum, lambda rng, n: {"g": jax.random.uniform(rng, (n,)) + 9.5})
    >>> env.observation_size, env.action_size, env.horizon
    (3, 1, 200)
    """
    defaults = environment.default_params if params is None else params
    space = environment.action_space(defaults)
    discrete = hasattr(space, "n")

    def shown(rng, state, params, observation, reward, done) -> EnvStep:
        observation = jnp.ravel(observation).astype(jnp.float32)
        reward = jnp.asarray(reward, jnp.float32).reshape(())
        return EnvStep(
            GymnaxState(state, params, rng), observation, reward, jnp.asarray(done, bool)
        )

    def reset(rng: Key, task: Task) -> EnvStep:
        params = defaults.replace(**task)
        reset_rng, rng = jax.random.split(rng)
        observation, state = environment.reset_env(reset_rng, params)
        return shown(rng, state, params, observation, 0.0, False)

    def step(before: EnvStep, action: Array) -> EnvStep:
        state, params, rng = before.state
        step_rng, rng = jax.random.split(rng)
        observation, state, reward, done, _ = environment.step_env(step_rng, state, action, params)
        return shown(rng, state, params, observation, reward, done)

    size = environment.observation_space(defaults).shape
    return Env(
        reset,
        step,
        sample_tasks,
        int(jnp.prod(jnp.asarray(size, int))) if size else 1,
        space.n if discrete else int(space.shape[0]),
        defaults.max_steps_in_episode if horizon is None else horizon,
    )
