"""Gymnax environments; a task sets some of the environment's parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.base import Array, Key, PyTree, check_function, check_integer, describe
from metajax.rl.base import Env, EnvStep, Task


class GymnaxState(NamedTuple):
    """The internal state of `from_gymnax`.

    Attributes:
      state: the gymnax state.
      params: the environment's parameters, including those that the task sets.
      rng: the key of the next step.
    """

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
    """Turns a gymnax environment into an `Env`.

    A task is a dict with the values of some of the environment's parameters. The `Env` calls
    `reset_env` and `step_env` directly, so that it never resets automatically.

    Args:
      environment: a gymnax environment with array observations.
      sample_tasks: `(rng, n) -> {parameter: [n, ...]}`.
      params: values of the parameters that tasks do not set. By default the environment's own.
      horizon: number of steps per trajectory. By default gymnax's time limit,
        `params.max_steps_in_episode`.

    Raises:
      ValueError: for an environment of another kind; by `reset`, for a task that is not a dict of
        the environment's parameters.

    Example:

    >>> import gymnax, jax
    >>> from metajax.rl import from_gymnax
    >>> pendulum, _ = gymnax.make("Pendulum-v1")
    >>> env = from_gymnax(pendulum, lambda rng, n: {"g": jax.random.uniform(rng, (n,)) + 9.5})
    >>> env.observation_size, env.action_size, env.horizon
    (3, 1, 200)
    """
    if not (hasattr(environment, "reset_env") and hasattr(environment, "step_env")):
        raise ValueError(
            "from_gymnax: environment must be a gymnax environment, such as gymnax.make(name)[0], "
            f"got {describe(environment)}."
        )
    check_function("from_gymnax: sample_tasks", sample_tasks, "rng, n")
    defaults = environment.default_params if params is None else params
    shape = getattr(environment.observation_space(defaults), "shape", None)
    space = environment.action_space(defaults)
    discrete = hasattr(space, "n")
    if shape is None or not (discrete or len(getattr(space, "shape", ())) == 1):
        raise ValueError(
            "from_gymnax: observations must be arrays, and actions discrete or vectors, but the "
            f"spaces are {describe(environment.observation_space(defaults))} and "
            f"{describe(space)}."
        )
    steps = defaults.max_steps_in_episode if horizon is None else horizon
    if isinstance(steps, float) and steps.is_integer():  # some gymnax environments have 100.0
        steps = int(steps)
    steps = check_integer("from_gymnax: horizon, by default max_steps_in_episode,", steps)

    def make_step(rng, state, params, observation, reward, done) -> EnvStep:
        # JAX's float type: float64 where it is enabled.
        observation = jnp.ravel(observation).astype(float)
        reward = jnp.asarray(reward).astype(float).reshape(())
        return EnvStep(
            GymnaxState(state, params, rng), observation, reward, jnp.asarray(done, bool)
        )

    def reset(rng: Key, task: Task) -> EnvStep:
        unknown = set(task) - set(vars(defaults)) if isinstance(task, dict) else {describe(task)}
        if unknown:
            raise ValueError(
                f"from_gymnax: a task must be a dict with keys among {', '.join(vars(defaults))}, "
                f"got {', '.join(sorted(unknown))}."
            )
        params = defaults.replace(**task)
        reset_rng, rng = jax.random.split(rng)
        observation, state = environment.reset_env(reset_rng, params)
        return make_step(rng, state, params, observation, 0.0, False)

    def step(before: EnvStep, action: Array) -> EnvStep:
        state, params, rng = before.state
        step_rng, rng = jax.random.split(rng)
        observation, state, reward, done, _ = environment.step_env(step_rng, state, action, params)
        return make_step(rng, state, params, observation, reward, done)

    return Env(
        reset,
        step,
        sample_tasks,
        math.prod(shape),
        int(space.n if discrete else space.shape[0]),
        steps,
        discrete,
    )
