"""Rollouts, returns, the linear baseline and advantages."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from metajax.base import (
    Array,
    Key,
    Params,
    check_function,
    check_integer,
    check_kind,
    check_number,
    describe,
    split_key,
)
from metajax.rl.arguments import (
    check_distribution,
    check_env,
    check_memory,
    check_policy,
    check_same,
    check_step,
    check_trajectories,
)
from metajax.rl.base import Env, Policy, Task, Trajectories, as_recurrent, masked_mean

PRECISION = jax.lax.Precision.HIGHEST
Features = Callable[[Array], Array]


def rollout(
    env: Env, policy: Policy, params: Params, task: Task, rng: Key, num_trajectories: int
) -> Trajectories:
    """Samples trajectories: a scan over time of a `vmap` over trajectories.

    A trajectory ends after `env.horizon` steps; after a step that returns `done`, whose reward
    still counts; or before a step whose observation or reward is not finite, which `failures`
    records. Everything after the end is masked. No derivative passes through them.

    Args:
      env: the environment.
      policy: `(params, observations) -> Distribution`, or `Recurrent`.
      params: the policy's parameters.
      task: the parameters of one task.
      rng: a key.
      num_trajectories: number of trajectories, static.

    Returns:
      `Trajectories` without advantages.

    Raises:
      ValueError: for arguments of the wrong kind, and for an environment or a policy that returns
        other shapes than `Env` states.

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from metajax import rl
    >>> from metajax.rl.navigation import navigation
    >>> env = navigation()._replace(horizon=5)
    >>> model = rl.GaussianMLP(env.action_size, hidden=())
    >>> params = model.init(jax.random.key(0), jnp.zeros(env.observation_size))
    >>> task = {"goal": jnp.array([0.3, 0.4])}
    >>> trajectories = rl.rollout(env, model.apply, params, task, jax.random.key(1), 3)
    >>> trajectories.rewards.shape, rl.standardized_advantages(trajectories).shape
    ((3, 5), (3, 5))
    >>> float(rl.mean_return(trajectories)) < 0
    True
    """
    check_env("rollout", env)
    check_policy("rollout", policy)
    num_trajectories = check_integer("rollout: num_trajectories", num_trajectories)
    params, recurrent = jax.lax.stop_gradient(params), as_recurrent(policy)
    reset_rng, action_rng = split_key(rng, what="rollout: rng")

    def finite(step):
        return jnp.isfinite(step.observation).all(-1) & jnp.isfinite(step.reward)

    def body(carry, step_rng):
        before, alive, memory = carry
        # After its end a trajectory may be in any state, even NaN.
        observation = jnp.where(alive[:, None], before.observation, 0.0)
        remembered, distribution = recurrent.step(params, memory, observation)
        check_memory(memory, remembered)
        check_distribution(distribution, env, num_trajectories)
        action = distribution.sample(step_rng)
        after = jax.vmap(env.step)(before, action)
        check_step("step", after, env, num_trajectories)
        check_same(before, after)
        counts = alive & finite(after)
        reward = jnp.where(counts, after.reward, 0.0)
        kept = observation, action, reward, counts, distribution, alive & ~counts
        return (after, counts & ~after.done, remembered), kept

    first = jax.vmap(env.reset, in_axes=(0, None))(
        jax.random.split(reset_rng, num_trajectories), task
    )
    check_step("reset", first, env, num_trajectories)
    alive = finite(first) & ~first.done
    start = first, alive, recurrent.start(params, (num_trajectories,))
    _, kept = jax.lax.scan(body, start, jax.random.split(action_rng, env.horizon))
    observations, actions, rewards, counts, distribution, failed = jax.tree.map(
        lambda x: jnp.swapaxes(x, 0, 1), kept
    )
    failures = failed.any(1) | ~finite(first)
    mask = counts.astype(rewards.dtype)
    failures = failures.astype(rewards.dtype)
    return jax.lax.stop_gradient(
        Trajectories(observations, actions, rewards, mask, distribution, (), failures)
    )


def mean_return(trajectories: Trajectories) -> Array:
    """The mean undiscounted return of the trajectories that did not fail; 0 if all failed."""
    check_kind("mean_return: trajectories", trajectories, Trajectories, "such as rollout returns")
    kept = 1.0 - trajectories.failures
    total = jnp.sum(trajectories.rewards * trajectories.mask, axis=-1)
    return jnp.sum(total * kept) / jnp.maximum(jnp.sum(kept), 1.0)


def discounted_sums(x: Array, factor: float | Array) -> Array:
    r"""Discounted sums of later entries, :math:`y_t = x_t + \gamma y_{t+1}`.

    Args:
      x: `[..., horizon]`.
      factor: :math:`\gamma`.

    Returns:
      y, `[..., horizon]`.

    Raises:
      ValueError: for a scalar.

    Example:

    >>> import jax.numpy as jnp
    >>> from metajax import rl
    >>> rl.discounted_sums(jnp.array([1.0, 2.0, 4.0]), 0.5).tolist()
    [3.0, 4.0, 4.0]
    """
    x = jnp.asarray(x, jnp.result_type(x, 0.0))
    factor = jnp.asarray(factor, x.dtype)
    if not x.ndim:
        raise ValueError("discounted_sums: x must be [..., horizon], but it is a scalar.")

    def body(later, now):
        later = now + factor * later
        return later, later

    _, sums = jax.lax.scan(body, jnp.zeros_like(x[..., 0]), jnp.moveaxis(x, -1, 0), reverse=True)
    return jnp.moveaxis(sums, 0, -1)


def observation_features(observations: Array) -> Array:
    """Features of the linear baseline: observations, their squares and powers of time.

    Observations are clipped to [-10, 10]. Time starts at 0 in each trajectory, in units of 100
    steps.

    Args:
      observations: `[trajectories, horizon, observation_size]`.

    Returns:
      `[trajectories, horizon, 2 * observation_size + 4]`.

    References:
      Duan et al., `Benchmarking Deep Reinforcement Learning for Continuous Control
      <https://arxiv.org/abs/1604.06778>`_, 2016, section 4.
    """
    o = jnp.clip(observations, -10.0, 10.0)
    return jnp.concatenate([o, o**2, time_features(observations)], axis=-1)


def time_features(observations: Array) -> Array:
    """Features of a linear baseline that sees the time alone: its first three powers, and 1.

    They cost less than `observation_features`, and are better than those where observations are
    long and say little about the return, such as pictures.

    Args:
      observations: `[trajectories, horizon, observation_size]`, of which only the shape counts.

    Returns:
      `[trajectories, horizon, 4]`.
    """
    time = jnp.arange(observations.shape[-2], dtype=observations.dtype) / 100.0
    powers = jnp.stack([time, time**2, time**3, jnp.ones_like(time)], axis=-1)
    return jnp.broadcast_to(powers, (*observations.shape[:-1], powers.shape[-1]))


def fit_linear(features: Array, targets: Array, mask: Array, ridge: float = 1e-5) -> Array:
    r"""Ridge regression by the normal equations.

    .. math:: w = (F^\top F / n + \lambda I)^{-1} F^\top y / n

    The columns of F are the features, scaled to a mean square of 1. Without the scaling, a small
    :math:`\lambda` would be lost in float32 where features are collinear. For the same reason it is
    at least the machine epsilon times the number of features, the rounding of :math:`F^\top F`:
    1.5e-4 for a thousand features in float32.

    Args:
      features: `[..., features]`.
      targets: y, `[...]`.
      mask: `[...]`, 1 for the rows to fit and 0 for the others.
      ridge: :math:`\lambda`.

    Returns:
      Weights `[features]` for the unscaled features.
    """
    rows = features.reshape(-1, features.shape[-1]) * mask.reshape(-1, 1)
    y = (targets * mask).reshape(-1)
    count = jnp.maximum(mask.sum(), 1.0)
    square = jnp.sum(rows**2, axis=0) / count
    scale = jnp.sqrt(jnp.where(square > 0, square, 1.0))
    rows = rows / scale[None]
    gram = jnp.matmul(rows.T, rows, precision=PRECISION) / count
    moment = jnp.matmul(rows.T, y, precision=PRECISION) / count
    ridge = max(ridge, float(jnp.finfo(gram.dtype).eps) * len(gram))
    gram += ridge * jnp.eye(gram.shape[0], dtype=gram.dtype)
    return jax.scipy.linalg.solve(gram, moment, assume_a="pos") / scale


def standardized_advantages(
    trajectories: Trajectories,
    *,
    discount: float | Array = 0.99,
    gae_lambda: float | Array = 1.0,
    features: Features = observation_features,
) -> Array:
    r"""Generalized advantage estimates with a linear baseline, standardized within one task.

    .. math::
      \delta_t = r_t + \gamma V(s_{t+1}) - V(s_t), \quad
      A_t = \sum_{k \ge 0} (\gamma \lambda)^k \delta_{t+k}

    The baseline V is a ridge regression of the discounted returns of the same trajectories on
    `features`. It is 0 after the end of a trajectory. The advantages are shifted and scaled to mean
    0 and standard deviation 1.

    Args:
      trajectories: the trajectories of one task.
      discount: :math:`\gamma`, in [0, 1].
      gae_lambda: :math:`\lambda`, in [0, 1].
      features: of the baseline, `observations [trajectories, horizon, size] -> [trajectories,
        horizon, features]`: `observation_features`, `time_features` or your own.

    Returns:
      Advantages `[trajectories, horizon]`, 0 where masked.

    Raises:
      ValueError: for trajectories of several tasks, and for arguments out of range.

    References:
      Schulman et al., `High-Dimensional Continuous Control Using Generalized Advantage Estimation
      <https://arxiv.org/abs/1506.02438>`_, 2016, equation 16.
    """
    check_trajectories("standardized_advantages", trajectories, "rewards")
    check_number("standardized_advantages: discount", discount, "[0, 1]")
    check_number("standardized_advantages: gae_lambda", gae_lambda, "[0, 1]")
    check_function("standardized_advantages: features", features, "observations")
    mask = trajectories.mask
    if jnp.ndim(mask) != 2:
        raise ValueError(
            "standardized_advantages: the mask of one task's trajectories must be [trajectories, "
            f"horizon], got {describe(mask)}; use jax.vmap for several tasks."
        )
    rewards = trajectories.rewards * mask
    described = features(trajectories.observations)
    weights = fit_linear(described, discounted_sums(rewards, discount), mask)
    values = jnp.matmul(described, weights, precision=PRECISION) * mask
    following = jnp.concatenate([values[:, 1:], jnp.zeros_like(values[:, :1])], axis=1)
    deltas = rewards + discount * following - values
    advantages = discounted_sums(deltas, discount * gae_lambda)
    mean = masked_mean(advantages, mask)
    variance = masked_mean((advantages - mean) ** 2, mask)
    # Without any reward the variance is 0, where the root has no derivative.
    deviation = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)
    return (advantages - mean) / (deviation + 1e-8) * mask
