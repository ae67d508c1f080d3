"""The types of meta-reinforcement learning: environments with tasks, policies, trajectories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from metajax.base import Array, Episode, Key, Params, PyTree, check_function, describe

Task = PyTree


class EnvStep(NamedTuple):
    """The result of `Env.reset` or `Env.step`.

    Attributes:
      state: the environment's internal state, including the task and any random key.
      observation: `[observation_size]`.
      reward: scalar reward of the step; 0 after a reset.
      done: scalar bool, true if the trajectory ends here. Time limits do not count: `rollout` ends
        every trajectory after `Env.horizon` steps.
    """

    state: PyTree
    observation: Array
    reward: Array
    done: Array


class Env(NamedTuple):
    """An environment with a distribution of tasks, as pure functions.

    `reset` and `step` handle a single trajectory; `rollout` applies `jax.vmap` to them.

    Attributes:
      reset: `(rng, task) -> EnvStep`.
      step: `(EnvStep, action) -> EnvStep`. It never resets automatically.
      sample_tasks: `(rng, n) -> tasks`, a pytree of arrays `[n, ...]`.
      observation_size: length of an observation.
      action_size: length of a continuous action, or the number of discrete actions.
      horizon: number of steps per trajectory.
      discrete: whether actions are integers, as of `Categorical` policies.

    Example, a point that is rewarded for being close to its goal:

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
    discrete: bool = False


class Distribution(Protocol):
    """A distribution over actions: a pytree with leaves `[..., action_size]`."""

    def sample(self, rng: Key) -> Array:
        """Draws one action from each distribution."""
        ...

    def log_prob(self, action: Array) -> Array:
        """The log-probability of each whole action, `[...]`."""
        ...

    def kl(self, other: Any) -> Array:
        """KL(self || other), `[...]`."""
        ...

    def entropy(self) -> Array:
        """The entropy of each distribution, `[...]`."""
        ...


Policy = Callable[[Params, Array], Any]
"""`(params, observations [..., observation_size]) -> Distribution` over actions `[...]`."""


class Recurrent(NamedTuple):
    """A policy with a memory, which starts anew with every trajectory.

    It is a `Policy` too: called with the observations of whole trajectories
    `[..., horizon, observation_size]`, it returns the distributions of all their steps. `rollout`
    takes one step at a time.

    Attributes:
      start: `(params, shape) -> memory` before the first step, leaves `[*shape, ...]`.
      step: `(params, memory, observations [..., observation_size]) -> (memory, Distribution)`.

    Example, a policy that acts by the sum of all its observations:

    >>> import jax, jax.numpy as jnp
    >>> from metajax import rl
    >>> def step(params, total, observations):
    ...     total = total + observations
    ...     return total, rl.Normal(params * total, jnp.zeros_like(total))
    >>> policy = rl.Recurrent(lambda params, shape: jnp.zeros((*shape, 1)), step)
    >>> policy(2.0, jnp.ones((1, 3, 1))).mean[0, :, 0].tolist()
    [2.0, 4.0, 6.0]
    """

    start: Callable[[Params, tuple[int, ...]], PyTree]
    step: Callable[[Params, PyTree, Array], tuple[PyTree, Any]]

    def __call__(self, params: Params, observations: Array) -> Any:
        memory = self.start(params, observations.shape[:-2])
        _, distributions = jax.lax.scan(
            lambda memory, x: self.step(params, memory, x),
            memory,
            jnp.moveaxis(observations, -2, 0),
        )
        # The axis of time behind those of the trajectories.
        axis = observations.ndim - 2
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, axis), distributions)


def as_recurrent(policy: Policy | Recurrent) -> Recurrent:
    """Any policy as one that is called step by step."""
    if isinstance(policy, Recurrent):
        return policy
    return Recurrent(
        lambda params, shape: (), lambda params, memory, x: (memory, policy(params, x))
    )


class Trajectories(NamedTuple):
    """Trajectories of one task, arrays `[trajectories, horizon, ...]` unless stated otherwise.

    Attributes:
      observations: the policy's inputs; 0 after the end of a trajectory.
      actions: the actions taken.
      rewards: the rewards received; 0 after the end of a trajectory.
      mask: 1.0 for the steps of a trajectory, 0.0 after its end.
      distribution: the policy's distribution from which the actions were drawn.
      advantages: see `standardized_advantages`; `()` before they are computed.
      failures: `[trajectories]`, 1.0 for a trajectory that was cut off because an observation or a
        reward was not finite.
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

    The support of an episode holds the parameters of one task, and the query is empty. The learner
    rolls out the trajectories.

    Args:
      sample_tasks: `Env.sample_tasks`.

    Raises:
      ValueError: if `sample_tasks` is not a function `(rng, n)`; when sampled, if the tasks have
        no leading task axis.

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
    """The mean of the unmasked entries; 0 if all are masked."""
    total = mask.sum()
    return (x * mask).sum() / jnp.where(total > 0, total, 1.0)


def check_tasks(tasks: PyTree, count: int) -> PyTree:
    """Returns the tasks, or raises `ValueError` unless every array is `[count, ...]`."""
    sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(tasks)}
    if sizes != {(count,)}:
        raise ValueError(
            f"sample_tasks(rng, {count}) must return arrays [{count}, ...], but it returned "
            f"{describe(jax.tree.map(describe, tasks))}."
        )
    return tasks
