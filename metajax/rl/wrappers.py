"""Environments made of others."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from metajax.base import Array, Key
from metajax.rl.base import Env, EnvStep, Task


def oracle(env: Env) -> Env:
    """Appends the task to every observation: the policy knows what the others must find out.

    All numbers of the task's parameters are appended in the order of the pytree.

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      section 5.3.
    """

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

    example = jax.eval_shape(lambda: env.sample_tasks(jax.random.key(0), 1))
    size = sum(x.size for x in jax.tree.leaves(example))
    return env._replace(reset=reset, step=step, observation_size=env.observation_size + size)
