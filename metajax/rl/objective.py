"""The outer objective: the adapted policies as functions of the initialization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from metajax.base import (
    Array,
    Episode,
    Key,
    MetaParams,
    MetaState,
    Metrics,
    PyTree,
    check_kind,
    split_key,
)
from metajax.learner import check_episodes, check_state
from metajax.parallel import over_tasks
from metajax.rl.arguments import check_trajectories
from metajax.rl.base import Distribution, Trajectories, masked_mean
from metajax.rl.inner import Collected, InnerLoop, collect, replay
from metajax.rl.rollout import mean_return


def loss_and_kl(
    loop: InnerLoop,
    meta_params: MetaParams,
    collected: Collected,
    *,
    every_step: bool = False,
    collecting: bool = False,
) -> tuple[Array, Array]:
    r"""One task's outer loss, and the KL from the sampling policy to the adapted one.

    .. math::
      -\mathbb{E}\Big[\frac{\pi_\phi(a_t|s_t)}{\pi_{old}(a_t|s_t)} A_t\Big], \quad
      \mathbb{E}\big[\mathrm{KL}(\pi_{old} \| \pi_\phi)\big]

    Args:
      loop: from `rl.inner_loop`.
      meta_params: where adaptation starts.
      collected: the trajectories of one task, from `rl.collect`.
      every_step: average over the policies after every adaptation step, not the last one only.
      collecting: whether `meta_params` are those that collected. The adapted parameters are then
        taken from `collected` instead of being recomputed; derivatives stay the same.

    Returns:
      Two scalars, means over steps and trajectories.

    Raises:
      ValueError: for arguments of the wrong kind, and for trajectories without advantages.
    """
    trajectories = outer_trajectories(collected, every_step)
    new = adapted_distributions(loop, meta_params, collected, every_step, collecting=collecting)
    gain = probability_ratios(trajectories, new) * trajectories.advantages
    return -mean_over_steps(gain, trajectories), mean_kl(trajectories, new)


def kl_curvature(
    loop: InnerLoop,
    meta_params: MetaParams,
    batch: Collected,
    *,
    every_step: bool = False,
    task_chunk: int | None = None,
    mesh: Mesh | None = None,
) -> Callable[[MetaParams], MetaParams]:
    r"""Products with the Hessian of the mean KL through adaptation.

    .. math::
      v \mapsto J^\top H J v, \quad
      J = \frac{\partial \pi_{\phi(\theta)}}{\partial \theta}, \quad
      H = \frac{\partial^2 \mathrm{KL}}{\partial \pi^2}

    This is the full Hessian at the parameters that collected `batch`, where the gradient of the KL
    is 0. Adaptation is linearized once for all products; this linearization is kept in memory for
    all tasks at once.

    Args:
      loop: from `rl.inner_loop`; forward mode must cross it (`Adapt.forward`).
      meta_params: the parameters that collected `batch`.
      batch: the trajectories of a meta-batch, leaves `[tasks, ...]`. Some of the trajectories may
        be left out; the policies remain those adapted to all of them.
      every_step: see `loss_and_kl`.
      task_chunk: tasks per `vmap`, see `metajax.meta_learner`.
      mesh: devices that share the tasks, such as `metajax.task_mesh()`.

    Returns:
      `v -> H v` on trees like `meta_params`.
    """

    def distributions(meta_params, collected):
        return adapted_distributions(loop, meta_params, collected, every_step, collecting=True)

    mapped = for_each_task(distributions, task_chunk, mesh)
    new, push = jax.linearize(lambda meta_params: mapped(meta_params, batch), meta_params)
    pull = jax.linear_transpose(push, meta_params)
    trajectories = jax.vmap(lambda collected: outer_trajectories(collected, every_step))(batch)

    def kl(new: Any) -> Array:
        return jnp.mean(jax.vmap(mean_kl)(trajectories, new))

    def product(v: MetaParams) -> MetaParams:
        (pulled,) = pull(jax.jvp(jax.grad(kl), (new,), (push(v),))[1])
        return pulled

    return product


def outer_trajectories(collected: Collected, every_step: bool) -> Trajectories:
    """The trajectories of the outer loss, leaves `[1 or num_steps, trajectories, ...]`."""
    check_kind("collected", collected, Collected, "as rl.collect returns")
    check_trajectories("collected.query", collected.query, "rewards", "advantages")
    if not every_step or collected.support.mask.shape[0] < 2:
        return jax.tree.map(lambda x: x[None], collected.query)
    return jax.tree.map(
        lambda x, last: jnp.concatenate([x[1:], last[None]]), collected.support, collected.query
    )


def adapted_distributions(
    loop: InnerLoop,
    meta_params: MetaParams,
    collected: Collected,
    every_step: bool,
    *,
    collecting: bool = False,
) -> Any:
    """The adapted policies' action distributions along `outer_trajectories`."""
    trajectories = outer_trajectories(collected, every_step)
    policies = replay(loop, meta_params, collected.support)
    if collecting:
        policies = _replace_value(policies, collected.policies)
    policies = jax.tree.map(lambda x: x[-trajectories.mask.shape[0] :], policies)
    return jax.vmap(loop.policy)(policies, trajectories.observations)


@jax.custom_jvp
def _replace_value(x: PyTree, value: PyTree) -> PyTree:
    """Returns `value`, which equals `x`, with the derivative of `x`.

    The compiler then drops those parts of `x` that the derivative does not need: with first order,
    the whole adaptation.
    """
    del x
    return value


@_replace_value.defjvp
def _replace_value_jvp(primals, tangents):
    return primals[1], tangents[0]


def probability_ratios(trajectories: Trajectories, new: Distribution) -> Array:
    """The ratios of the actions' probabilities, new over old; 1 where masked."""
    old_log_probs = trajectories.distribution.log_prob(trajectories.actions)
    difference = new.log_prob(trajectories.actions) - old_log_probs
    return jnp.exp(jnp.where(trajectories.mask > 0, difference, 0.0))


def mean_kl(trajectories: Trajectories, new: Distribution) -> Array:
    """The mean of KL(sampling policy || new)."""
    return mean_over_steps(trajectories.distribution.kl(new), trajectories)


def mean_over_steps(x: Array, trajectories: Trajectories) -> Array:
    """The mean over the trajectories of each adaptation step, then over adaptation steps."""
    return jnp.mean(jax.vmap(masked_mean)(x, trajectories.mask))


def inner_kl(loop: InnerLoop, meta_params: MetaParams, support: Trajectories) -> Array:
    """The mean KL of the policies before each adaptation step, from the sampling ones."""
    if not support.mask.shape[0]:
        return jnp.zeros(())
    policies = jax.tree.map(lambda x: x[:-1], replay(loop, meta_params, support))
    return mean_kl(support, jax.vmap(loop.policy)(policies, support.observations))


def for_each_task(
    fn: Callable[[Any, Any], PyTree], task_chunk: int | None, mesh: Mesh | None
) -> Callable[[Any, Any], PyTree]:
    """Maps `fn(shared, task)` over tasks: `(shared, tasks) -> results [tasks, ...]`."""

    def run_chunk(shared, tasks, carry):
        return jax.vmap(fn, in_axes=(None, 0))(shared, tasks), carry

    mapped = over_tasks(run_chunk, task_chunk=task_chunk, mesh=mesh, stack=True)
    return lambda shared, tasks: mapped(shared, tasks)[0]


def mean_over_tasks(
    fn: Callable[[Any, Any], PyTree], task_chunk: int | None, mesh: Mesh | None
) -> Callable[[Any, Any], PyTree]:
    """Averages `fn(shared, task)` over tasks: `(shared, tasks) -> mean result`."""

    def run_chunk(shared, tasks, carry):
        results = jax.vmap(fn, in_axes=(None, 0))(shared, tasks)
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), results), carry

    mapped = over_tasks(run_chunk, task_chunk=task_chunk, mesh=mesh)
    return lambda shared, tasks: mapped(shared, tasks)[0]


def gradient_over_tasks(
    fn: Callable[[Any, Any], tuple[Array, PyTree]], task_chunk: int | None, mesh: Mesh | None
) -> Callable[[Any, Any], PyTree]:
    """Averages `fn(shared, task) -> (value, aux)` over tasks, with the gradient of the mean value.

    Returns `(shared, tasks) -> ((value, aux), gradient)`. A gradient of the mean adds up what the
    tasks share as early as possible; a mean of gradients would keep each task's own, in a recurrent
    policy at every step of time.
    """

    def run_chunk(shared, tasks, carry):
        def mean(shared):
            results = jax.vmap(fn, in_axes=(None, 0))(shared, tasks)
            return jax.tree.map(lambda x: jnp.mean(x, axis=0), results)

        return jax.value_and_grad(mean, has_aux=True)(shared), carry

    mapped = over_tasks(run_chunk, task_chunk=task_chunk, mesh=mesh)
    return lambda shared, tasks: mapped(shared, tasks)[0]


def collect_batch(
    loop: InnerLoop,
    state: MetaState,
    episodes: Episode,
    rng: Key,
    task_chunk: int | None,
    mesh: Mesh | None,
) -> tuple[Collected, Metrics]:
    """Collects the trajectories of a meta-batch, leaves `[tasks, ...]`, and their metrics."""
    check_state(state)
    rngs = split_key(rng, check_episodes(episodes))

    def collect_task(meta_params, task_and_rng):
        return collect(loop, meta_params, *task_and_rng)

    mapped = for_each_task(collect_task, task_chunk, mesh)
    batch = mapped(state.meta_params, (episodes.support, rngs))
    parts = (batch.support, batch.query)
    return batch, {
        "return": _mean_per_step(mean_return, batch),
        "entropy": _mean_per_step(_mean_entropy, batch),
        "env_steps": sum(x.mask.sum() for x in parts),
        "failures": sum(x.failures.sum() for x in parts),
    }


def take_every(batch: Collected, stride: int) -> Collected:
    """Every `stride`-th trajectory of a meta-batch."""
    support = jax.tree.map(lambda x: x[:, :, ::stride], batch.support)
    query = jax.tree.map(lambda x: x[:, ::stride], batch.query)
    return Collected(support, query, batch.policies)


def _mean_entropy(trajectories: Trajectories) -> Array:
    return masked_mean(trajectories.distribution.entropy(), trajectories.mask)


def _mean_per_step(fn: Callable[[Trajectories], Array], batch: Collected) -> Array:
    """The mean over tasks before and after each adaptation step, `[num_steps + 1]`."""
    support, query = jax.vmap(jax.vmap(fn))(batch.support), jax.vmap(fn)(batch.query)
    return jnp.mean(jnp.concatenate([support, query[:, None]], axis=1), axis=0)
