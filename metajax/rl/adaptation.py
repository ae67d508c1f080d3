"""Adaptation by policy gradients: collected once with the environment, replayed without."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

from metajax.base import (
    Adapt,
    Array,
    Episode,
    Key,
    MetaParams,
    Params,
    check_function,
    check_integer,
    split_key,
)
from metajax.batches import full_batch, per_step
from metajax.gradients import MetaGradient
from metajax.inner import LearnedOptimizer, inner_loop
from metajax.rl.arguments import check_env, check_kind, check_number, check_policy
from metajax.rl.base import Env, Policy, Task, Trajectories
from metajax.rl.rollout import mean_return, rollout, standardized_advantages
from metajax.rl.surrogates import Surrogate, likelihood_ratio

Sample = Callable[[Params, Task, Key], Trajectories]


class Adaptation(NamedTuple):
    """One task's adaptation in two forms of the same inner loop.

    Attributes:
      policy: `(params, observations) -> Distribution`.
      sample: `(params, task, rng) -> Trajectories` with advantages.
      collect: an inner loop on tasks: every step rolls the current policy out. The trajectories
        come back as `info.aux`, leaves `[num_steps, trajectories, horizon, ...]`.
      replay: the same loop on those trajectories. It is a function of the initialization alone,
        so it can be differentiated, linearized and evaluated again nearby.
    """

    policy: Policy
    sample: Sample
    collect: Adapt
    replay: Adapt


def sampler(
    env: Env,
    policy: Policy,
    num_trajectories: int,
    *,
    discount: float | Array = 0.99,
    gae_lambda: float | Array = 1.0,
) -> Sample:
    """Rollouts with advantages: `(params, task, rng) -> Trajectories`.

    The trajectories have no derivative; the advantages have one by the discount and by lambda.

    Args:
      env: the environment.
      policy: `(params, observations) -> Distribution`.
      num_trajectories: per call.
      discount: see `standardized_advantages`.
      gae_lambda: see `standardized_advantages`.

    Raises:
      ValueError: for arguments of the wrong kind or out of range.
    """
    check_env("sampler", env)
    check_policy("sampler", policy)
    num_trajectories = check_integer("sampler: num_trajectories", num_trajectories)
    check_number("sampler: discount", discount, "[0, 1]")
    check_number("sampler: gae_lambda", gae_lambda, "[0, 1]")

    def sample(params: Params, task: Task, rng: Key) -> Trajectories:
        trajectories = rollout(env, policy, params, task, rng, num_trajectories)
        advantages = standardized_advantages(trajectories, discount=discount, gae_lambda=gae_lambda)
        return trajectories._replace(advantages=advantages)

    return sample


def adaptation(
    policy: Policy,
    sample: Sample,
    optimizer: optax.GradientTransformation | LearnedOptimizer,
    num_steps: int = 1,
    *,
    surrogate: Surrogate = likelihood_ratio,
    meta_gradient: MetaGradient | None = None,
) -> Adaptation:
    r"""Policy-gradient adaptation, with fresh trajectories at every step.

    .. math:: \phi_{t+1} = \phi_t - \alpha \nabla L(\phi_t, \tau_t), \quad \tau_t \sim \pi_{\phi_t}

    Args:
      policy: `(params, observations) -> Distribution`.
      sample: from `sampler`.
      optimizer: any optax transformation, or a `LearnedOptimizer`.
      num_steps: adaptation steps; 0 for a policy that does not adapt.
      surrogate: the loss of a step, `likelihood_ratio`, `log_likelihood` or `dice`.
      meta_gradient: `second_order()` by default, or `first_order()`.

    Raises:
      ValueError: for arguments of the wrong kind, and as `metajax.inner_loop`.

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      algorithm 3.
    """

    check_policy("adaptation", policy)
    check_function("adaptation: sample", sample, "params, task, rng", " from rl.sampler")
    check_function(
        "adaptation: surrogate", surrogate, "policy, params, trajectories", " such as rl.dice"
    )

    def sampled(params, task, rng):
        # The gradient of a surrogate is that of what was sampled, not of what sampled it.
        return sample(jax.lax.stop_gradient(params), task, rng)

    def collected(params, task, rng):
        trajectories = sampled(params, task, rng)
        return surrogate(policy, params, trajectories), trajectories

    def replayed(params, trajectories, rng):
        return surrogate(policy, params, trajectories), {}

    return Adaptation(
        policy,
        sampled,
        inner_loop(collected, optimizer, num_steps, meta_gradient=meta_gradient),
        inner_loop(
            replayed,
            optimizer,
            num_steps,
            meta_gradient=meta_gradient,
            # Without steps there is nothing to index, not even when the loop is traced.
            batches=per_step() if num_steps else full_batch(),
        ),
    )


class Collected(NamedTuple):
    """The trajectories of one task's adaptation; with a task axis, of a meta-batch.

    Attributes:
      support: before each adaptation step, leaves `[num_steps, trajectories, horizon, ...]`.
      query: after the last one, leaves `[trajectories, horizon, ...]`.
      policies: the parameters that sampled them, leaves `[num_steps + 1, ...]`.
    """

    support: Trajectories
    query: Trajectories
    policies: Params


def collect(adaptation: Adaptation, meta_params: MetaParams, task: Task, rng: Key) -> Collected:
    """Adapts to one task and samples before every step and after the last one."""
    check_kind("collect: adaptation", adaptation, Adaptation, "from rl.adaptation")
    check_kind("collect: meta_params", meta_params, MetaParams, "such as state.meta_params")
    adapt_rng, query_rng = split_key(rng, what="collect: rng")
    adapted, info = adaptation.collect.apply(meta_params, task, adapt_rng, probe=_params)
    query = adaptation.sample(adapted, task, query_rng)
    return Collected(info.aux, query, info.probe)


def replay(adaptation: Adaptation, meta_params: MetaParams, support: Trajectories) -> Params:
    """The parameters before and after each step, from stored trajectories.

    Returns:
      Leaves `[num_steps + 1, ...]`; the last are the adapted ones.
    """
    check_kind("replay: adaptation", adaptation, Adaptation, "from rl.adaptation")
    check_kind("replay: meta_params", meta_params, MetaParams, "such as state.meta_params")
    key = jax.random.key(0)
    return adaptation.replay.apply(meta_params, support, key, probe=_params)[1].probe


def _params(params: Params, step: Array | int) -> Params:
    del step
    return params


def policy_return(
    env: Env, policy: Policy, num_trajectories: int
) -> Callable[[Params, Episode, Key], Array]:
    """A metric for `metajax.evaluate`: the mean undiscounted return of fresh trajectories.

    Raises:
      ValueError: for arguments of the wrong kind.
    """
    check_env("policy_return", env)
    check_policy("policy_return", policy)
    num_trajectories = check_integer("policy_return: num_trajectories", num_trajectories)

    def metric(params: Params, episode: Episode, rng: Key) -> Array:
        return mean_return(rollout(env, policy, params, episode.support, rng, num_trajectories))

    return metric
