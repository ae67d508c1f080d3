"""The types of meta-reinforcement learning: environments with tasks, policies, trajectories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from metajax.base import Array, Episode, Key, Params, PyTree, check_function

Task = PyTree


class EnvStep(NamedTuple):
    """What an environment is in, and what it shows.

    Attributes:
      state: the environment's own state; it carries the task and whatever randomness it needs.
      observation: `[observation_size]`.
      reward: scalar, of the step that led here; 0 after a reset.
      done: scalar bool, whether the task has ended here. Time limits are not the environment's.
    """

    state: PyTree
    observation: Array
    reward: Array
    done: Array


class Env(NamedTuple):
    """A family of environments, one per task, as pure functions of single states.

    Attributes:
      reset: `(rng, task) -> EnvStep`.
      step: `(EnvStep, action) -> EnvStep`. It never resets by itself.
      sample_tasks: `(rng, n) -> tasks`, a pytree of arrays `[n, ...]`.
      observation_size: length of an observation.
      action_size: length of an action, or the number of discrete ones.
      horizon: steps of a trajectory.

    Example, a point that is told where to go:

    >>> import jax, jax.numpy as jnp
    >>> from metajax import rl
    >>> def reset(rng, goal):
    ...     return rl.EnvStep((jnp.zeros(1), goal), jnp.zeros(1), jnp.zeros(()), jnp.asarray(False))
    >>> def step(before, action):
    ...     position, goal = before.state
    ...     position = position + action
    ...     reward = -jnp.sum((position - goal) ** 2)
    ...     return rl.EnvStep((position, goal), position, reward, jnp.asarray(False))
    >>> env = rl.Env(reset, step, lambda rng, n: jax.random.normal(rng, (n, 1)), 1, 1, horizon=5)
    """

    reset: Callable[[Key, Task], EnvStep]
    step: Callable[[EnvStep, Array], EnvStep]
    sample_tasks: Callable[[Key, int], Task]
    observation_size: int
    action_size: int
    horizon: int


class Distribution(Protocol):
    """A distribution of actions: a pytree with leaves `[..., action_size]`."""

    def sample(self, rng: Key) -> Array: ...

    def log_prob(self, action: Array) -> Array: ...

    def kl(self, other: Any) -> Array: ...

    def entropy(self) -> Array: ...


Policy = Callable[[Params, Array], Any]
"""`(params, observations [..., observation_size]) -> Distribution` over actions `[...]`."""


class Trajectories(NamedTuple):
    """Rollouts of one task; every array is `[trajectories, horizon, ...]`.

    Attributes:
      observations: what the policy saw, 0 after the end.
      actions: what it did.
      rewards: what it got, 0 after the end.
      mask: 1.0 for steps that count, 0.0 after the end.
      distribution: the policy's distribution that the actions were drawn from.
      advantages: of the actions, see `standardized_advantages`; `()` before they are computed.
      failures: `[trajectories]`, 1.0 where the physics was not finite and the rest was dropped.
    """

    observations: Array
    actions: Array
    rewards: Array
    mask: Array
    distribution: Any
    advantages: Any
    failures: Array


@jax.tree_util.register_static
class Tasks:
    """The tasks of an environment as a `metajax.tasks.TaskDistribution`, for `train.fit`.

    An episode's support is the task's parameters; its trajectories are rolled out by the learner.

    Args:
      sample_tasks: `Env.sample_tasks`.

    Raises:
      ValueError: for what is no such function; when sampled, for tasks without a task axis.

    Example:

    >>> import jax, metajax
    >>> from metajax import rl
    >>> goals = rl.Tasks(lambda rng, n: jax.random.normal(rng, (n, 2)))
    >>> metajax.tasks.meta_batch(goals, 5, jax.random.key(0)).support.shape
    (5, 2)
    """

    def __init__(self, sample_tasks: Callable[[Key, int], Task]):
        check_function("Tasks: sample_tasks", sample_tasks, "rng, n", " such as env.sample_tasks")
        self.sample_tasks = sample_tasks

    def sample(self, rng: Key) -> Episode:
        """Draws one task."""
        tasks = check_tasks(self.sample_tasks(rng, 1), 1)
        return Episode(jax.tree.map(lambda x: x[0], tasks), ())


def masked_mean(x: Array, mask: Array) -> Array:
    """The mean of the entries that the mask keeps; 0 if it keeps none."""
    total = mask.sum()
    return (x * mask).sum() / jnp.where(total > 0, total, 1.0)


def shown(value: Any) -> str:
    """A value on one line, arrays by type and shape."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}{list(value.shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else type(value).__name__


def check_tasks(tasks: PyTree, count: int) -> PyTree:
    """Passes on what `sample_tasks(rng, count)` returned."""
    sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(tasks)}
    if sizes != {(count,)}:
        raise ValueError(
            f"sample_tasks(rng, {count}) must return arrays [{count}, ...], it returned "
            f"{shown(jax.tree.map(shown, tasks))}."
        )
    return tasks
