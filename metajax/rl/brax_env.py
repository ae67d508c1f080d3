"""Brax environments with your own tasks and rewards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.base import Array, Key, PyTree, check_function, check_integer, describe
from metajax.rl.base import Env, EnvStep, Task

Reward = Callable[[Any, Array, Any, Task], tuple[Array, Array]]
"""`(before, action, after, task) -> (reward, done)`; `before` and `after` are Brax states, and the
action is clipped."""


class BraxState(NamedTuple):
    """The internal state of `from_brax`.

    Attributes:
      state: the Brax state.
      task: the task.
    """

    state: PyTree
    task: Task


def from_brax(
    environment: Any,
    sample_tasks: Callable[[Key, int], Task],
    *,
    reward: Reward | None = None,
    observe: Callable[[Any], Array] | None = None,
    horizon: int = 200,
) -> Env:
    """Turns a Brax environment into an `Env`.

    Actions are clipped to [-1, 1] before both the physics and the reward. Brax clips them in the
    actuator only, so that its control costs depend on the unclipped action.

    Args:
      environment: a `brax.envs.Env` with array observations, without wrappers.
      sample_tasks: `(rng, n) -> tasks [n, ...]`.
      reward: `(before, action, after, task) -> (reward, done)`. By default the environment's own
        reward, which is the same for all tasks.
      observe: `state -> observation`, of a Brax state. By default the environment's own.
      horizon: number of steps per trajectory.

    Raises:
      ValueError: for arguments of the wrong kind, and for observations that are not vectors.

    Example:

    >>> import brax.envs, jax.numpy as jnp
    >>> from metajax.rl import from_brax
    >>> def reward(before, action, after, task):
    ...     return -jnp.abs(after.obs[0] - task), after.done
    >>> env = from_brax(brax.envs.get_environment("inverted_pendulum"),
    ...                 lambda rng, n: jnp.zeros(n), reward=reward)
    >>> env.observation_size, env.action_size
    (4, 1)
    """
    for name in ("reset", "step", "action_size"):
        if not hasattr(environment, name):
            raise ValueError(
                f"from_brax: the environment must be a brax.envs.Env, but {describe(environment)} "
                f"has no {name}."
            )
    check_function("from_brax: sample_tasks", sample_tasks, "rng, n")
    if reward is not None:
        check_function("from_brax: reward", reward, "before, action, after, task")
    if observe is not None:
        check_function("from_brax: observe", observe, "state")
    horizon = check_integer("from_brax: horizon", horizon)

    def make_step(state: Any, task: Task, reward: Array, done: Array) -> EnvStep:
        observation = state.obs if observe is None else observe(state)
        return EnvStep(BraxState(state, task), observation, reward, jnp.asarray(done).astype(bool))

    def reset(rng: Key, task: Task) -> EnvStep:
        state = environment.reset(rng)
        return make_step(state, task, jnp.zeros_like(state.reward), state.done)

    def step(before: EnvStep, action: Array) -> EnvStep:
        state, task = before.state
        action = jnp.clip(action, -1.0, 1.0)
        # Some environments write into the dict of metrics, so they get a copy.
        after = environment.step(state.replace(metrics=dict(state.metrics)), action)
        result = (after.reward, after.done)
        if reward is not None:
            result = reward(state, action, after, task)
        return make_step(after, task, *result)

    observation = jax.eval_shape(lambda: reset(jax.random.key(0), ())).observation
    if jnp.ndim(observation) != 1:
        raise ValueError(
            f"from_brax: an observation must be a vector, but it is {describe(observation)}; pass "
            "observe."
        )
    return Env(
        reset,
        step,
        sample_tasks,
        observation.shape[0],
        environment.action_size,
        horizon,
    )


def brax_state(step: EnvStep) -> Any:
    """The Brax state inside a step of `from_brax`, also inside wrappers; Brax can render it."""
    state = step.state
    while not isinstance(state, BraxState):
        state = state[0].state
    return state.state
