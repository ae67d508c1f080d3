"""What the outer steps are made of: the adapted policies as functions of the initialization."""

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
    split_key,
)
from metajax.learner import check_episodes, check_state
from metajax.parallel import over_tasks
from metajax.rl.adaptation import Adaptation, Collected, collect, replay
from metajax.rl.arguments import check_kind, check_trajectories
from metajax.rl.base import Trajectories, masked_mean
from metajax.rl.rollout import mean_return


def kl_curvature(
    adaptation: Adaptation,
    meta_params: MetaParams,
    batch: Collected,
    *,
    every_step: bool = False,
    task_chunk: int | None = None,
    mesh: Mesh | None = None,
) -> Callable[[MetaParams], MetaParams]:
    """The Hessian of the mean KL through adaptation, at the collecting parameters: `v -> H v`.

    Adaptation is linearized once for all products, so forward mode has to work there
    (`Adapt.forward`), and what it leaves for them is kept for all tasks of `batch`. The policies
    are those that collected, also where `batch` has only some of their trajectories.
    """

    def of_chunk(meta_params, collected, thread):
        def of_task(collected):
            return outcome(adaptation, meta_params, collected, every_step, collecting=True)

        return jax.vmap(of_task)(collected), thread

    mapped = over_tasks(of_chunk, task_chunk=task_chunk, mesh=mesh, stack=True)
    at, push = jax.linearize(lambda meta_params: mapped(meta_params, batch)[0], meta_params)
    pull = jax.linear_transpose(push, meta_params)
    judged = jax.vmap(lambda collected: judged_trajectories(collected, every_step))(batch)

    def kl(new: Any) -> Array:
        return jnp.mean(jax.vmap(mean_kl)(judged, new))

    def product(v: MetaParams) -> MetaParams:
        (pulled,) = pull(jax.jvp(jax.grad(kl), (at,), (push(v),))[1])
        return pulled

    return product


def loss_and_kl(
    adaptation: Adaptation,
    meta_params: MetaParams,
    collected: Collected,
    *,
    every_step: bool = False,
    collecting: bool = False,
) -> tuple[Array, Array]:
    """One task's surrogate loss of the adapted policy, and how far it is from the sampling one.

    If `meta_params` are those that collected, `collecting=True` saves adapting once more.
    """
    judged = judged_trajectories(collected, every_step)
    new = outcome(adaptation, meta_params, collected, every_step, collecting=collecting)
    return -mean_over_steps(ratios(judged, new) * judged.advantages, judged), mean_kl(judged, new)


def judged_trajectories(collected: Collected, every_step: bool) -> Trajectories:
    """The trajectories that the outer loss is on, leaves `[1 or num_steps, trajectories, ...]`."""
    check_kind("what is judged", collected, Collected, "as rl.collect returns")
    check_trajectories("what is judged", collected.query, "rewards", "advantages")
    if not every_step or collected.support.mask.shape[0] < 2:
        return jax.tree.map(lambda x: x[None], collected.query)
    return jax.tree.map(
        lambda x, last: jnp.concatenate([x[1:], last[None]]), collected.support, collected.query
    )


def outcome(
    adaptation: Adaptation,
    meta_params: MetaParams,
    collected: Collected,
    every_step: bool,
    *,
    collecting: bool = False,
) -> Any:
    """The distributions of the adapted policies along the judged trajectories."""
    judged = judged_trajectories(collected, every_step)
    policies = replay(adaptation, meta_params, collected.support)
    if collecting:
        policies = _known(collected.policies, policies)
    policies = jax.tree.map(lambda x: x[-judged.mask.shape[0] :], policies)
    return jax.vmap(adaptation.policy)(policies, judged.observations)


@jax.custom_jvp
def _known(value: PyTree, x: PyTree) -> PyTree:
    """`value`, with the derivative of `x`, of which it is the value.

    What of `x` its derivative does not need is then dead code: with first order, all adaptation.
    """
    del x
    return value


@_known.defjvp
def _known_jvp(primals, tangents):
    return primals[0], tangents[1]


def ratios(judged: Trajectories, new: Any) -> Array:
    old = judged.distribution.log_prob(judged.actions)
    return jnp.exp(jnp.where(judged.mask > 0, new.log_prob(judged.actions) - old, 0.0))


def mean_kl(judged: Trajectories, new: Any) -> Array:
    return mean_over_steps(judged.distribution.kl(new), judged)


def mean_over_steps(x: Array, trajectories: Trajectories) -> Array:
    """Over the steps that count of every adaptation step, then over adaptation steps."""
    return jnp.mean(jax.vmap(masked_mean)(x, trajectories.mask))


def kl_on_the_way(adaptation: Adaptation, meta_params: MetaParams, support: Trajectories) -> Array:
    """How far the policies that the adaptation steps start from have moved."""
    if not support.mask.shape[0]:
        return jnp.zeros(())
    policies = jax.tree.map(lambda x: x[:-1], replay(adaptation, meta_params, support))
    return mean_kl(support, jax.vmap(adaptation.policy)(policies, support.observations))


def mean_over_tasks(
    of_task: Callable[[Any, Collected], PyTree], task_chunk: int | None, mesh: Mesh | None = None
) -> Callable[[Any, Collected], PyTree]:
    def of_chunk(shared, collected, thread):
        values = jax.vmap(of_task, in_axes=(None, 0))(shared, collected)
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), values), thread

    mapped = over_tasks(of_chunk, task_chunk=task_chunk, mesh=mesh)
    return lambda shared, collected: mapped(shared, collected)[0]


def collect_all(
    adaptation: Adaptation,
    state: MetaState,
    episodes: Episode,
    rng: Key,
    task_chunk: int | None,
    mesh: Mesh | None = None,
) -> tuple[Collected, Metrics]:
    """Rolls out for all tasks: trajectories `[tasks, ...]`, and what is to be said of them."""
    check_state(state)
    rngs = split_key(rng, check_episodes(episodes))

    def of_chunk(meta_params, tasks, thread):
        def of_task(task, rng):
            return collect(adaptation, meta_params, task, rng)

        return jax.vmap(of_task)(*tasks), thread

    mapped = over_tasks(of_chunk, task_chunk=task_chunk, mesh=mesh, stack=True)
    batch, _ = mapped(state.meta_params, (episodes.support, rngs))
    # [tasks, num_steps + 1, ...]
    returns = jax.vmap(jax.vmap(mean_return))(batch.support), jax.vmap(mean_return)(batch.query)
    entropies = (
        jax.vmap(jax.vmap(_entropy))(batch.support),
        jax.vmap(_entropy)(batch.query),
    )
    parts = (batch.support, batch.query)
    return batch, {
        "return": _per_step(*returns),
        "entropy": _per_step(*entropies),
        "env_steps": sum(x.mask.sum() for x in parts),
        "failures": sum(x.failures.sum() for x in parts),
    }


def every(batch: Collected, stride: int) -> Collected:
    """Every so many-th trajectory of all tasks."""
    support = jax.tree.map(lambda x: x[:, :, ::stride], batch.support)
    query = jax.tree.map(lambda x: x[:, ::stride], batch.query)
    return Collected(support, query, batch.policies)


def _entropy(trajectories: Trajectories) -> Array:
    return masked_mean(trajectories.distribution.entropy(), trajectories.mask)


def _per_step(support: Array, query: Array) -> Array:
    return jnp.mean(jnp.concatenate([support, query[:, None]], axis=1), axis=0)
