"""Policy-gradient adaptation: collected in the environment once, replayed without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

from metajax import inner as core
from metajax.base import (
    Adapt,
    Array,
    Episode,
    Key,
    MetaParams,
    Params,
    check_function,
    check_integer,
    check_kind,
    check_number,
    split_key,
)
from metajax.batches import full_batch, per_step
from metajax.gradients import MetaGradient, second_order
from metajax.optimizers import LearnedOptimizer
from metajax.rl.arguments import check_env, check_policy
from metajax.rl.base import Env, Policy, Task, Trajectories
from metajax.rl.rollout import (
    Features,
    mean_return,
    observation_features,
    rollout,
    standardized_advantages,
)
from metajax.rl.surrogates import Surrogate, likelihood_ratio

Sample = Callable[[Params, Task, Key], Trajectories]


class InnerLoop(NamedTuple):
    """Adaptation to one task by policy gradients, built by `rl.inner_loop`.

    It has two forms, which take the same steps: `collect` samples new trajectories at every step,
    and `replay` uses stored ones.

    Attributes:
      policy: `(params, observations) -> Distribution`.
      sample: `(params, task, rng) -> Trajectories`, with advantages.
      collect: an inner loop whose support is a task. It returns the trajectories of all steps as
        `info.aux`, leaves `[num_steps, trajectories, horizon, ...]`.
      replay: an inner loop whose support is such trajectories. The adapted parameters depend on
        the initialization alone, so they can be differentiated, linearized and recomputed at a
        nearby initialization.
      rebuild: `(num_steps=None, sample=None) -> InnerLoop`, the same inner loop with another
        number of steps or another sampler; `None` keeps the present one.
    """

    policy: Policy
    sample: Sample
    collect: Adapt
    replay: Adapt
    rebuild: Callable[..., InnerLoop]


def sampler(
    env: Env,
    policy: Policy,
    num_trajectories: int,
    *,
    discount: float | Array = 0.99,
    gae_lambda: float | Array = 1.0,
    features: Features = observation_features,
) -> Sample:
    """Returns a function that rolls a policy out and computes the advantages.

    No derivative passes through the trajectories. The advantages are differentiable with respect to
    `discount` and `gae_lambda`.

    Args:
      env: the environment.
      policy: `(params, observations) -> Distribution`.
      num_trajectories: number of trajectories per call.
      discount: see `standardized_advantages`.
      gae_lambda: see `standardized_advantages`.
      features: of the baseline, see `standardized_advantages`.

    Returns:
      `(params, task, rng) -> Trajectories`, with advantages.

    Raises:
      ValueError: for arguments of the wrong kind or out of range.

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from metajax import rl
    >>> from metajax.rl.navigation import navigation
    >>> env = navigation()._replace(horizon=5)
    >>> model = rl.GaussianMLP(env.action_size, hidden=())
    >>> params = model.init(jax.random.key(0), jnp.zeros(env.observation_size))
    >>> sample = rl.sampler(env, model.apply, num_trajectories=3, discount=0.95)
    >>> trajectories = sample(params, {"goal": jnp.array([0.3, 0.4])}, jax.random.key(1))
    >>> trajectories.actions.shape, trajectories.advantages.shape
    ((3, 5, 2), (3, 5))
    """
    check_env("sampler", env)
    check_policy("sampler", policy)
    num_trajectories = check_integer("sampler: num_trajectories", num_trajectories)
    check_number("sampler: discount", discount, "[0, 1]")
    check_number("sampler: gae_lambda", gae_lambda, "[0, 1]")
    check_function("sampler: features", features, "observations")

    def sample(params: Params, task: Task, rng: Key) -> Trajectories:
        trajectories = rollout(env, policy, params, task, rng, num_trajectories)
        advantages = standardized_advantages(
            trajectories, discount=discount, gae_lambda=gae_lambda, features=features
        )
        return trajectories._replace(advantages=advantages)

    return sample


def inner_loop(
    policy: Policy,
    sample: Sample,
    optimizer: optax.GradientTransformation | LearnedOptimizer,
    num_steps: int = 1,
    *,
    surrogate: Surrogate = likelihood_ratio,
    meta_gradient: MetaGradient | None = None,
) -> InnerLoop:
    r"""Adapts a policy to one task by policy gradients, with new trajectories at every step.

    .. math:: \phi_{t+1} = \phi_t - \alpha \nabla L(\phi_t, \tau_t), \quad \tau_t \sim \pi_{\phi_t}

    Args:
      policy: `(params, observations) -> Distribution`.
      sample: `(params, task, rng) -> Trajectories`, from `rl.sampler`.
      optimizer: any optax transformation, or a `LearnedOptimizer`.
      num_steps: number of adaptation steps; 0 leaves the policy unadapted.
      surrogate: the loss of an adaptation step, `likelihood_ratio`, `log_likelihood` or `dice`.
      meta_gradient: `second_order()` by default, or `first_order()`.

    Returns:
      An `InnerLoop`.

    Raises:
      ValueError: for arguments of the wrong kind, and as `metajax.inner_loop`.

    Example, an evaluation with more steps and trajectories than in training:

    >>> import jax, jax.numpy as jnp, metajax, optax
    >>> from metajax import rl
    >>> from metajax.rl.navigation import navigation
    >>> env = navigation()._replace(horizon=5)
    >>> model = rl.GaussianMLP(env.action_size, hidden=())
    >>> policy, params = model.apply, model.init(jax.random.key(0), jnp.zeros(2))
    >>> inner = rl.inner_loop(policy, rl.sampler(env, policy, 20), optax.sgd(0.1))
    >>> learner = rl.maml_trpo(inner)
    >>> loop = learner.inner.rebuild(num_steps=3, sample=rl.sampler(env, policy, 40))
    >>> metric = rl.policy_return(env, policy, 40)
    >>> episodes = metajax.tasks.meta_batch(rl.Tasks(env.sample_tasks), 4, jax.random.key(1))
    >>> score = jax.jit(lambda state, rng: metajax.evaluate(
    ...     loop.collect, metric, state, episodes, rng))
    >>> score(learner.init(params), jax.random.key(2))["mean"].shape  # before and after each step
    (4,)

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      algorithm 3.
    """
    check_policy("inner_loop", policy)
    check_function("inner_loop: sample", sample, "params, task, rng", " from rl.sampler")
    check_function(
        "inner_loop: surrogate", surrogate, "policy, params, trajectories", " such as rl.dice"
    )

    def sample_constants(params, task, rng):
        # Differentiating a surrogate treats the trajectories as data, whatever sampled them.
        return sample(jax.lax.stop_gradient(params), task, rng)

    def collect_loss(params, task, rng):
        trajectories = sample_constants(params, task, rng)
        return surrogate(policy, params, trajectories), trajectories

    def replay_loss(params, trajectories, rng):
        return surrogate(policy, params, trajectories), {}

    engine = second_order() if meta_gradient is None else meta_gradient
    if getattr(engine, "remat", False) is None:
        # A trust-region step linearizes once and applies the result many times.
        engine = engine._replace(remat=False)
    own_steps, own_sample = num_steps, sample

    def rebuild(num_steps: int | None = None, sample: Sample | None = None) -> InnerLoop:
        return inner_loop(
            policy,
            own_sample if sample is None else sample,
            optimizer,
            own_steps if num_steps is None else num_steps,
            surrogate=surrogate,
            meta_gradient=meta_gradient,
        )

    return InnerLoop(
        policy,
        sample_constants,
        core.inner_loop(collect_loss, optimizer, num_steps, meta_gradient=engine),
        core.inner_loop(
            replay_loss,
            optimizer,
            num_steps,
            meta_gradient=engine,
            # Without steps the support has no axis for per_step() to index.
            batches=per_step() if num_steps else full_batch(),
        ),
        rebuild,
    )


class Collected(NamedTuple):
    """The trajectories of adaptation to one task; with a leading task axis, of a meta-batch.

    Attributes:
      support: sampled before each adaptation step, leaves
        `[num_steps, trajectories, horizon, ...]`.
      query: sampled after the last step, leaves `[trajectories, horizon, ...]`.
      policies: the parameters that sampled them, leaves `[num_steps + 1, ...]`.
    """

    support: Trajectories
    query: Trajectories
    policies: Params


def collect(loop: InnerLoop, meta_params: MetaParams, task: Task, rng: Key) -> Collected:
    """Adapts to one task, and samples trajectories before every step and after the last one.

    Args:
      loop: from `rl.inner_loop`.
      meta_params: where adaptation starts.
      task: the parameters of one task.
      rng: a key.

    Returns:
      `Collected` of one task.

    Raises:
      ValueError: for arguments of the wrong kind.

    Example:

    >>> import jax, jax.numpy as jnp, metajax, optax
    >>> from metajax import rl
    >>> from metajax.rl.navigation import navigation
    >>> env = navigation()._replace(horizon=5)
    >>> model = rl.GaussianMLP(env.action_size, hidden=())
    >>> start = metajax.MetaParams(model.init(jax.random.key(0), jnp.zeros(2)))
    >>> loop = rl.inner_loop(model.apply, rl.sampler(env, model.apply, 3), optax.sgd(0.1), 2)
    >>> task = {"goal": jnp.array([0.3, 0.4])}
    >>> collected = rl.collect(loop, start, task, jax.random.key(1))
    >>> collected.support.rewards.shape, collected.query.rewards.shape
    ((2, 3, 5), (3, 5))
    >>> policies = rl.replay(loop, start, collected.support)  # as collected.policies
    >>> policies["params"]["log_std"].shape  # before and after each step
    (3, 2)
    """
    check_kind("collect: loop", loop, InnerLoop, "from rl.inner_loop")
    check_kind("collect: meta_params", meta_params, MetaParams, "such as state.meta_params")
    adapt_rng, query_rng = split_key(rng, what="collect: rng")
    adapted, info = loop.collect.apply(meta_params, task, adapt_rng, probe=_params)
    query = loop.sample(adapted, task, query_rng)
    return Collected(info.aux, query, info.probe)


def replay(loop: InnerLoop, meta_params: MetaParams, support: Trajectories) -> Params:
    """Adapts to stored trajectories of one task.

    Args:
      loop: from `rl.inner_loop`.
      meta_params: where adaptation starts.
      support: `Collected.support`, leaves `[num_steps, trajectories, horizon, ...]`.

    Returns:
      The parameters before and after each step, leaves `[num_steps + 1, ...]`.

    Raises:
      ValueError: for arguments of the wrong kind, and for trajectories of another number of steps.
    """
    check_kind("replay: loop", loop, InnerLoop, "from rl.inner_loop")
    check_kind("replay: meta_params", meta_params, MetaParams, "such as state.meta_params")
    key = jax.random.key(0)
    return loop.replay.apply(meta_params, support, key, probe=_params)[1].probe


def _params(params: Params, step: Array | int) -> Params:
    del step
    return params


def policy_return(
    env: Env, policy: Policy, num_trajectories: int
) -> Callable[[Params, Episode, Key], Array]:
    """A metric for `metajax.evaluate`: the mean undiscounted return of new trajectories.

    Args:
      env: the environment.
      policy: `(params, observations) -> Distribution`.
      num_trajectories: number of trajectories per task and adaptation step.

    Returns:
      `(params, episode, rng) -> scalar`, for episodes whose support is a task.

    Raises:
      ValueError: for arguments of the wrong kind.
    """
    check_env("policy_return", env)
    check_policy("policy_return", policy)
    num_trajectories = check_integer("policy_return: num_trajectories", num_trajectories)

    def metric(params: Params, episode: Episode, rng: Key) -> Array:
        return mean_return(rollout(env, policy, params, episode.support, rng, num_trajectories))

    return metric
