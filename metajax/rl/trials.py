"""Several episodes of one task in succession, for policies that learn within their memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.base import Array, Episode, Key, Params, PyTree, check_integer
from metajax.rl.arguments import check_env, check_policy
from metajax.rl.base import Env, EnvStep, Policy, Task
from metajax.rl.rollout import rollout, time_features


class TrialState(NamedTuple):
    """The internal state of `trials`.

    Attributes:
      inner: the step of the present episode.
      task: the parameters of the task.
      rng: the key of the next resets.
      steps: the steps taken in the present episode.
      episodes: the episodes that have ended.
    """

    inner: EnvStep
    task: PyTree
    rng: Key
    steps: Array
    episodes: Array


def trials(env: Env, num_episodes: int) -> Env:
    r"""Plays several episodes of one task as a single trajectory, as RL2 does.

    To every observation it appends the previous action, the previous reward, and 1 if the previous
    step ended an episode, else 0:

    .. math:: o'_t = (o_t, a_{t-1}, r_{t-1}, d_{t-1})

    An episode ends as it does in `env`, also after `env.horizon` steps; the next one starts with a
    new reset in the same task. A discrete action is appended as a one-hot vector. At the start of a
    trajectory all of these are 0. A policy with a memory (`with_memory`) that maximizes the sum of
    the rewards learns to explore in the first episode what it needs in the later ones: RL2 is
    `promp`, or `maml_trpo`, of an inner loop without steps in such an environment.

    Every step computes a reset besides, whether or not an episode ends.

    Args:
      env: the environment.
      num_episodes: episodes in a trajectory.

    Returns:
      An `Env` whose horizon is `num_episodes * env.horizon`.

    Raises:
      ValueError: for arguments of the wrong kind.

    Example:

    >>> import jax, jax.numpy as jnp, metajax, optax
    >>> from metajax import rl
    >>> from metajax.rl.navigation import navigation
    >>> env = rl.trials(navigation()._replace(horizon=5), num_episodes=3)
    >>> env.horizon, env.observation_size  # position, action, reward, end of an episode
    (15, 6)
    >>> model = rl.GaussianMLP(env.action_size)
    >>> init, policy = rl.with_memory(model.init, model.apply, memory_size=16)
    >>> params = init(jax.random.key(0), jnp.zeros(env.observation_size))
    >>> loop = rl.inner_loop(policy, rl.sampler(env, policy, 4), optax.identity(), num_steps=0)
    >>> rl2 = rl.promp(loop, optax.adam(1e-3))
    >>> episodes = metajax.tasks.meta_batch(rl.Tasks(env.sample_tasks), 2, jax.random.key(1))
    >>> state, metrics = jax.jit(rl2.update)(rl2.init(params), episodes, jax.random.key(2))
    >>> metric = rl.episode_returns(env, policy, 4, num_episodes=3)
    >>> scores = metajax.evaluate(loop.collect, metric, state, episodes, jax.random.key(3))
    >>> scores["mean"][0].shape  # in the first, second and third episode
    (3,)

    References:
      Duan et al., `RL2: Fast Reinforcement Learning via Slow Reinforcement Learning
      <https://arxiv.org/abs/1611.02779>`_, 2016, section 2.2.
    """
    check_env("trials", env)
    num_episodes = check_integer("trials: num_episodes", num_episodes)
    action_shape = () if env.discrete else (env.action_size,)

    def shown(state: TrialState, action: Array, reward: Array, ended: Array) -> EnvStep:
        inner = state.inner
        if env.discrete:
            action = jax.nn.one_hot(action, env.action_size)
        before = (jnp.reshape(x, -1) for x in (action, reward, ended))
        observation = jnp.concatenate(
            [inner.observation, *(x.astype(inner.observation.dtype) for x in before)]
        )
        return EnvStep(state, observation, reward, state.episodes >= num_episodes)

    def reset(rng: Key, task: Task) -> EnvStep:
        reset_rng, rng = jax.random.split(rng)
        inner = env.reset(reset_rng, task)
        none = jnp.zeros((), jnp.int32)
        # The one-hot vector of the class -1 is 0.
        action = jnp.full(action_shape, -1) if env.discrete else jnp.zeros(action_shape)
        ended = jnp.zeros((), bool)
        return shown(TrialState(inner, task, rng, none, none), action, inner.reward, ended)

    def step(before: EnvStep, action: Array) -> EnvStep:
        state: TrialState = before.state
        reset_rng, rng = jax.random.split(state.rng)
        after = env.step(state.inner, action)
        steps = state.steps + 1
        ended = after.done | (steps >= env.horizon)
        fresh = env.reset(reset_rng, state.task)
        following = jax.tree.map(lambda new, old: jnp.where(ended, new, old), fresh, after)
        # An observation that is not finite shows, though another episode begins.
        finite = jnp.isfinite(after.observation).all()
        reward = jnp.where(finite, after.reward, jnp.nan)
        steps, episodes = jnp.where(ended, 0, steps), state.episodes + ended
        return shown(TrialState(following, state.task, rng, steps, episodes), action, reward, ended)

    return env._replace(
        reset=reset,
        step=step,
        observation_size=env.observation_size + env.action_size + 2,
        horizon=num_episodes * env.horizon,
    )


def trial_features(observations: Array) -> Array:
    """Features of a linear baseline in `trials`: powers of time and of the number of the episode.

    Args:
      observations: `[trajectories, horizon, observation_size]` of `trials`.

    Returns:
      `[trajectories, horizon, 9]`: `time_features`, the episodes played and their square, and the
      first three powers of the steps since the last reset.
    """
    ended = observations[..., -1]
    time = jnp.broadcast_to(jnp.arange(ended.shape[-1], dtype=ended.dtype), ended.shape)
    played = jnp.cumsum(ended, axis=-1)
    began = jax.lax.cummax(jnp.where(ended > 0, time, 0.0), axis=ended.ndim - 1)
    since = (time - began) / 100.0
    own = jnp.stack([played, played**2, since, since**2, since**3], axis=-1)
    return jnp.concatenate([time_features(observations), own], axis=-1)


def episode_returns(
    env: Env, policy: Policy, num_trajectories: int, *, num_episodes: int
) -> Callable[[Params, Episode, Key], Array]:
    """A metric for `metajax.evaluate`: the mean return of each episode of new trajectories.

    Args:
      env: from `trials`, as it returned it: an episode's end is the last entry of an observation.
      policy: `(params, observations) -> Distribution`, usually from `with_memory`.
      num_trajectories: number of trajectories per task.
      num_episodes: the episodes of `trials`.

    Returns:
      `(params, episode, rng) -> [num_episodes]`, for episodes whose support is a task. Trajectories
      that failed are left out.

    Raises:
      ValueError: for arguments of the wrong kind.
    """
    check_env("episode_returns", env)
    check_policy("episode_returns", policy)
    num_trajectories = check_integer("episode_returns: num_trajectories", num_trajectories)
    num_episodes = check_integer("episode_returns: num_episodes", num_episodes)

    def metric(params: Params, episode: Episode, rng: Key) -> Array:
        found: Any = rollout(env, policy, params, episode.support, rng, num_trajectories)
        played = jnp.cumsum(found.observations[..., -1], axis=-1).astype(jnp.int32)
        of_episode = jax.nn.one_hot(played, num_episodes, dtype=found.rewards.dtype)
        kept = 1.0 - found.failures
        totals = jnp.einsum("ntk,nt,n->k", of_episode, found.rewards * found.mask, kept)
        return totals / jnp.maximum(kept.sum(), 1.0)

    return metric
