"""Any gymnax environment, its tasks being some of its parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.base import Array, Key, PyTree, check_function, check_integer
from metajax.rl.base import Env, EnvStep, Task, shown


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

    Raises:
      ValueError: for an environment of another kind; by `reset`, for a task that is no dict of the
        environment's parameters.

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
            "from_gymnax: the environment must be a gymnax one, such as gymnax.make(name)[0], got "
            f"{shown(environment)}."
        )
    check_function("from_gymnax: sample_tasks", sample_tasks, "rng, n")
    defaults = environment.default_params if params is None else params
    shape = getattr(environment.observation_space(defaults), "shape", None)
    space = environment.action_space(defaults)
    discrete = hasattr(space, "n")
    if shape is None or not (discrete or len(getattr(space, "shape", ())) == 1):
        raise ValueError(
            "from_gymnax: observations must be arrays, and actions discrete or vectors; the spaces "
            f"are {shown(environment.observation_space(defaults))} and {shown(space)}."
        )
    steps = defaults.max_steps_in_episode if horizon is None else horizon
    if isinstance(steps, float) and steps.is_integer():  # as in some of gymnax's own
        steps = int(steps)
    steps = check_integer("from_gymnax: the horizon, by default max_steps_in_episode,", steps)

    def show(rng, state, params, observation, reward, done) -> EnvStep:
        observation = jnp.ravel(observation).astype(jnp.float32)
        reward = jnp.asarray(reward, jnp.float32).reshape(())
        return EnvStep(
            GymnaxState(state, params, rng), observation, reward, jnp.asarray(done, bool)
        )

    def reset(rng: Key, task: Task) -> EnvStep:
        unknown = set(task) - set(vars(defaults)) if isinstance(task, dict) else {shown(task)}
        if unknown:
            raise ValueError(
                f"from_gymnax: a task must be a dict of {', '.join(vars(defaults))}; "
                f"{', '.join(sorted(unknown))} is not."
            )
        params = defaults.replace(**task)
        reset_rng, rng = jax.random.split(rng)
        observation, state = environment.reset_env(reset_rng, params)
        return show(rng, state, params, observation, 0.0, False)

    def step(before: EnvStep, action: Array) -> EnvStep:
        state, params, rng = before.state
        step_rng, rng = jax.random.split(rng)
        observation, state, reward, done, _ = environment.step_env(step_rng, state, action, params)
        return show(rng, state, params, observation, reward, done)

    return Env(
        reset,
        step,
        sample_tasks,
        math.prod(shape),
        int(space.n if discrete else space.shape[0]),
        steps,
    )
