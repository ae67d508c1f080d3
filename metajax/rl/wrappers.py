"""Wrappers: environments made from other environments."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from metajax.base import Array, Key, check_integer, check_number, split_key
from metajax.rl.arguments import check_env
from metajax.rl.base import Env, EnvStep, Task, Trajectories, check_tasks
from metajax.rl.policies import Normal
from metajax.rl.rollout import rollout


def oracle(env: Env) -> Env:
    """Appends the task's parameters to every observation, so that the policy knows the task.

    The parameters are flattened in the order of the pytree.

    Args:
      env: the environment.

    Returns:
      An `Env` with longer observations.

    Raises:
      ValueError: if `env` is not an `Env`, or if its tasks have no leading task axis.

    Example:

    >>> from metajax import rl
    >>> from metajax.rl.navigation import navigation
    >>> navigation().observation_size, rl.oracle(navigation()).observation_size
    (2, 4)

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      section 5.3.
    """
    check_env("oracle", env)

    def flatten(task: Task) -> Array:
        return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(task)])

    def append_task(inner: EnvStep, task: Task) -> EnvStep:
        parameters = flatten(task).astype(inner.observation.dtype)
        return inner._replace(
            state=(inner, task), observation=jnp.concatenate([inner.observation, parameters])
        )

    def reset(rng: Key, task: Task) -> EnvStep:
        return append_task(env.reset(rng, task), task)

    def step(before: EnvStep, action: Array) -> EnvStep:
        inner, task = before.state
        return append_task(env.step(inner, action), task)

    example = jax.eval_shape(lambda: check_tasks(env.sample_tasks(jax.random.key(0), 1), 1))
    size = sum(x.size for x in jax.tree.leaves(example))
    return env._replace(reset=reset, step=step, observation_size=env.observation_size + size)


def standardized(
    env: Env, rng: Key, *, num_trajectories: int = 40, bound: float | Array = 10.0
) -> Env:
    r"""Shifts and scales observations to mean 0 and variance 1 under random actions.

    .. math:: o' = \mathrm{clip}\Big(\frac{o - \mathrm{mean}}{\mathrm{std}}, \pm b\Big)

    Mean and standard deviation are computed once, from trajectories of random tasks with actions
    drawn from N(0, 1), and stay fixed. Constant components of the observation are shifted only.
    Without scaling, joint velocities of tens of radians per second would dominate the observation,
    saturate an untrained policy and make the trust region ill-conditioned.

    Args:
      env: an environment with continuous actions.
      rng: the key of the trajectories; the same key gives the same environment.
      num_trajectories: number of trajectories, each of another task.
      bound: b, the largest absolute value of a scaled observation.

    Returns:
      An `Env` with observations of the same size.

    Raises:
      ValueError: for discrete actions, and for arguments of the wrong kind or out of range.

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from metajax import rl
    >>> def reset(rng, task):
    ...     far = 100 + jax.random.normal(rng, (1,))
    ...     return rl.EnvStep((), far, jnp.zeros(()), jnp.asarray(False))
    >>> env = rl.Env(reset, lambda step, action: step, lambda rng, n: jnp.zeros(n), 1, 1, horizon=2)
    >>> scaled = rl.standardized(env, jax.random.key(0))
    >>> bool(jnp.abs(scaled.reset(jax.random.key(1), 0.0).observation)[0] < 10)
    True
    """
    check_env("standardized", env)
    if env.discrete:
        raise ValueError(
            "standardized: the random actions are those of continuous environments, but this one "
            "has discrete actions."
        )
    num_trajectories = check_integer("standardized: num_trajectories", num_trajectories)
    check_number("standardized: bound", bound, "(0, inf]")
    task_rng, roll_rng = split_key(rng, what="standardized: rng")
    tasks = check_tasks(env.sample_tasks(task_rng, num_trajectories), num_trajectories)

    def random_policy(params: tuple[()], observation: Array) -> Normal:
        zeros = jnp.zeros((*observation.shape[:-1], env.action_size))
        return Normal(zeros, zeros)

    def roll_out(task: Task, rng: Key) -> Trajectories:
        return rollout(env, random_policy, (), task, rng, 1)

    trajectories = jax.jit(jax.vmap(roll_out))(tasks, jax.random.split(roll_rng, num_trajectories))
    total = trajectories.mask.sum()
    mask = trajectories.mask[..., None]
    axes = tuple(range(mask.ndim - 1))
    mean = jnp.sum(trajectories.observations * mask, axes) / total
    centered = trajectories.observations - mean.reshape((1,) * len(axes) + (-1,))
    std = jnp.sqrt(jnp.sum(centered**2 * mask, axes) / total)
    scale = jnp.where(std > 1e-3, std, 1.0)

    def scale_observation(inner: EnvStep) -> EnvStep:
        observation = jnp.clip((inner.observation - mean) / scale, -bound, bound)
        return inner._replace(state=(inner,), observation=observation)

    def reset(rng: Key, task: Task) -> EnvStep:
        return scale_observation(env.reset(rng, task))

    def step(before: EnvStep, action: Array) -> EnvStep:
        return scale_observation(env.step(before.state[0], action))

    return env._replace(reset=reset, step=step)
