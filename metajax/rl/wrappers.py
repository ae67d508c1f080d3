"""Environments made of others."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from metajax.base import Array, Key, check_integer, split_key
from metajax.rl.arguments import check_env, check_number
from metajax.rl.base import Env, EnvStep, Task, Trajectories, check_tasks
from metajax.rl.policies import Normal
from metajax.rl.rollout import rollout


def oracle(env: Env) -> Env:
    """Appends the task to every observation: the policy knows what the others must find out.

    All numbers of the task's parameters are appended in the order of the pytree.

    Raises:
      ValueError: for what is no `Env`, and for one whose tasks have no task axis.

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      section 5.3.
    """
    check_env("oracle", env)

    def numbers(task: Task) -> Array:
        return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(task)])

    def told(inner: EnvStep, task: Task) -> EnvStep:
        known = numbers(task).astype(inner.observation.dtype)
        return inner._replace(
            state=(inner, task), observation=jnp.concatenate([inner.observation, known])
        )

    def reset(rng: Key, task: Task) -> EnvStep:
        return told(env.reset(rng, task), task)

    def step(before: EnvStep, action: Array) -> EnvStep:
        inner, task = before.state
        return told(env.step(inner, action), task)

    example = jax.eval_shape(lambda: check_tasks(env.sample_tasks(jax.random.key(0), 1), 1))
    size = sum(x.size for x in jax.tree.leaves(example))
    return env._replace(reset=reset, step=step, observation_size=env.observation_size + size)


def standardized(
    env: Env, rng: Key, *, num_trajectories: int = 40, bound: float | Array = 10.0
) -> Env:
    r"""Shifts and scales observations to mean 0 and variance 1 under random actions.

    .. math:: o' = \mathrm{clip}\Big(\frac{o - \mathrm{mean}}{\mathrm{std}}, \pm b\Big)

    Mean and standard deviation are taken once, over trajectories of random tasks with actions of
    standard deviation 1, and never change: the environment stays a function of its arguments.
    Joint velocities of tens of radians per second would otherwise drown everything else, saturate
    a fresh policy and spoil the conditioning of a trust region. What does not vary is only shifted.

    Args:
      env: the environment, of continuous actions.
      rng: decides the trajectories; the same key gives the same environment.
      num_trajectories: how many.
      bound: of an observation after scaling.

    Raises:
      ValueError: for arguments of the wrong kind or out of range.

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
    num_trajectories = check_integer("standardized: num_trajectories", num_trajectories)
    check_number("standardized: bound", bound, "(0, inf]")
    task_rng, roll_rng = split_key(rng, what="standardized: rng")
    tasks = check_tasks(env.sample_tasks(task_rng, num_trajectories), num_trajectories)

    def noise(params: tuple[()], observation: Array) -> Normal:
        zeros = jnp.zeros((*observation.shape[:-1], env.action_size))
        return Normal(zeros, zeros)

    def of_task(task: Task, rng: Key) -> Trajectories:
        return rollout(env, noise, (), task, rng, 1)

    seen = jax.jit(jax.vmap(of_task))(tasks, jax.random.split(roll_rng, num_trajectories))
    total = seen.mask.sum()
    mask = seen.mask[..., None]
    axes = tuple(range(mask.ndim - 1))
    mean = jnp.sum(seen.observations * mask, axes) / total
    around = seen.observations - mean.reshape((1,) * len(axes) + (-1,))
    std = jnp.sqrt(jnp.sum(around**2 * mask, axes) / total)
    scale = jnp.where(std > 1e-3, std, 1.0)

    def shown(inner: EnvStep) -> EnvStep:
        observation = jnp.clip((inner.observation - mean) / scale, -bound, bound)
        return inner._replace(state=(inner,), observation=observation)

    def reset(rng: Key, task: Task) -> EnvStep:
        return shown(env.reset(rng, task))

    def step(before: EnvStep, action: Array) -> EnvStep:
        return shown(env.step(before.state[0], action))

    return env._replace(reset=reset, step=step)
