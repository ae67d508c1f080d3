"""Adapt to many tasks and score every adaptation step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from metajax.base import (
    Adapt,
    Array,
    Episode,
    Key,
    MetaParams,
    MetaState,
    Params,
    PyTree,
    as_arrays,
    check_function,
    split_key,
)
from metajax.learner import check_episodes, check_state
from metajax.losses import Apply, check_labels, hits, masked_mean, squared_error, unpack
from metajax.machine import CPU_CHUNK_BYTES
from metajax.parallel import map_tasks, over_tasks

Metric = Callable[[Params, Episode, Key], PyTree]


class AtSteps(NamedTuple):
    """A metric that `evaluate` takes after some adaptation steps only, because it is expensive.

    Attributes:
      metric: `(params, episode, rng) -> pytree of scalars`.
      steps: after how many adaptation steps; 0 is before the first.
    """

    metric: Metric
    steps: Sequence[int]


def evaluate(
    adapt: Adapt,
    metric: PyTree,
    meta_state: MetaState | MetaParams,
    episodes: Episode,
    rng: Key,
    *,
    task_chunk: int | None = None,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Adapts to every task and scores it before, between and after the adaptation steps.

    The state is only read: every task starts from it, carried inner state included. Compile it:
    within `jax.jit` a repeated call takes milliseconds, without one a good part of a second.

    Args:
      adapt: an inner loop from `metajax.inner_loop`. Evaluation often takes more steps or other
        batches than training, so it has its own.
      metric: `(params, episode, rng) -> pytree of scalars`, such as `accuracy(apply)`, or a dict
        of several; those within `AtSteps` are taken after some steps only.
      meta_state: what to evaluate, or its meta-parameters alone, such as `train.load_meta_params`
        returns.
      episodes: tasks, leaves `[tasks, ...]`.
      rng: for the inner loop's batches and the loss.
      task_chunk: tasks per `vmap`, see `meta_learner`.
      mesh: devices that share the tasks, see `meta_learner`.

    Returns:
      `{"mean": ..., "ci95": ..., "num_tasks": n}`: for every metric arrays `[num_steps + 1]`, or
      one entry for each of `AtSteps.steps`, the mean over tasks and the half-width of its 95%
      interval, 1.96 standard deviations over the root of the number of tasks (infinite for one).

    Raises:
      ValueError: as `MetaLearner.update` for a wrong state or mismatched episodes; for a state with
        learned inner parameters that `adapt` has no use for, or without those that it needs; if
        `AtSteps` names a step that the adaptation does not have.

    Example:

    >>> import jax, jax.numpy as jnp, optax, metajax
    >>> loss = lambda params, batch, rng: (jnp.mean((params - batch) ** 2), {})
    >>> adapt = metajax.inner_loop(loss, optax.sgd(0.5), num_steps=3)
    >>> learner = metajax.maml(loss, optax.sgd(0.5), optax.sgd(0.1))
    >>> episodes = metajax.Episode(support=jnp.ones((4, 5)), query=jnp.ones((4, 5)))
    >>> metric = lambda params, episode, rng: loss(params, episode.query, rng)[0]
    >>> score = jax.jit(
    ...     lambda state, episodes, rng: metajax.evaluate(adapt, metric, state, episodes, rng))
    >>> scores = score(learner.init(jnp.zeros(())), episodes, jax.random.key(0))
    >>> scores["mean"].shape, int(scores["num_tasks"])
    ((4,), 4)

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      section 5.2 (600 tasks, 95% intervals over tasks).
    """
    if not isinstance(adapt, Adapt):
        raise ValueError(
            "evaluate: adapt must be an inner loop from metajax.inner_loop (not learner.adapt, "
            f"which returns only the final parameters), got {adapt!r}."
        )
    for each in jax.tree.leaves(metric, is_leaf=_is_at_steps) or [None]:
        fn = each.metric if _is_at_steps(each) else each
        check_function("evaluate: metric", fn, "params, episode, rng", " such as accuracy(apply)")
    if isinstance(meta_state, MetaParams):
        carried: tuple[Any, Any] = (meta_state, ())
    else:
        check_state(meta_state)
        carried = (meta_state.meta_params, meta_state.inner_state)
    num_tasks = check_episodes(episodes)

    def score(shared, tasks, carry):
        meta_params, inner_state = shared

        def one(episode, rng):
            adapt_rng, metric_rng = jax.random.split(rng)
            _, info = adapt.apply(
                meta_params,
                episode.support,
                adapt_rng,
                inner_state=inner_state,
                probe=lambda params, step: jax.tree.map(
                    lambda m: _measured(m, step, params, episode, metric_rng),
                    metric,
                    is_leaf=_is_at_steps,
                ),
            )
            return jax.tree.map(_selected, metric, info.probe, is_leaf=_is_at_steps)

        return map_tasks(one, *tasks), carry

    scores, _ = over_tasks(score, task_chunk=task_chunk, mesh=mesh, stack=True)(
        carried,
        (episodes, split_key(rng, num_tasks)),
    )

    def interval(x: Array) -> Array:
        if num_tasks == 1:
            return jnp.full(x.shape[1:], jnp.inf)
        return 1.96 * jnp.std(x, axis=0) / num_tasks**0.5

    return {
        "mean": jax.tree.map(lambda x: jnp.mean(x, axis=0), scores),
        "ci95": jax.tree.map(interval, scores),
        "num_tasks": num_tasks,
    }


def _is_at_steps(x: Any) -> bool:
    return isinstance(x, AtSteps)


def _measured(metric: Metric | AtSteps, step: Array | int, *args: Any) -> PyTree:
    if isinstance(metric, AtSteps):
        return jax.lax.cond(
            jnp.isin(step, np.asarray(metric.steps)),
            lambda: _measured(metric.metric, step, *args),
            lambda: jax.tree.map(
                lambda s: jnp.zeros(s.shape, s.dtype),
                jax.eval_shape(lambda: _measured(metric.metric, step, *args)),
            ),
        )
    return as_arrays("evaluate: metric", metric(*args))


def _selected(metric: Metric | AtSteps, probed: PyTree) -> PyTree:
    """The rows of the steps that were asked for."""
    if not isinstance(metric, AtSteps):
        return probed
    steps, last = np.asarray(metric.steps), len(jax.tree.leaves(probed)[0]) - 1
    if steps.ndim != 1 or steps.dtype.kind not in "iu" or not np.isin(steps, range(last + 1)).all():
        raise ValueError(
            f"evaluate: AtSteps.steps must be integers [n] within 0 to {last}, the number of "
            f"adaptation steps; got {metric.steps!r}."
        )
    return jax.tree.map(lambda x: x[steps], probed)


def accuracy(apply: Apply, *, transductive: bool = True) -> Metric:
    """The fraction of query examples whose highest logit is the label.

    A model with batch statistics sees the whole query set at once in the transductive setting, and
    so learns from the other queries' distribution. The alternative asks for one query at a time,
    together with the support, which is as many times as much work: `AtSteps` asks for it where it
    matters.

    Args:
      apply: `(params, x [examples, ...]) -> logits [examples, ways]`.
      transductive: all queries in one batch, or each alone with the support set.

    Returns:
      A metric of episodes whose batches are `(x, labels)`, `(x, labels, mask)` or dicts of `"x"`,
      `"y"` and `"mask"`, see `cross_entropy`.

    Raises:
      ValueError: when traced, unless the labels are class numbers `[examples]`.

    References:
      Nichol et al., `On First-Order Meta-Learning Algorithms
      <https://arxiv.org/abs/1803.02999>`_, 2018, section 6.1.
    """
    check_function("accuracy: apply", apply, "params, x")

    def metric(params: Params, episode: Episode, rng: Key) -> Array:
        query, labels, mask = unpack(episode.query)

        def logits_alone(x: Array) -> Array:
            return apply(params, jnp.concatenate([support, x[None]]))[-1]

        if transductive:
            logits = apply(params, query)
        else:
            support = unpack(episode.support)[0]
            # As many at a time as a cache holds; elsewhere the tasks are enough to do at once.
            alone_bytes = (len(support) + 1) * query[0].size * query.dtype.itemsize
            together = int(np.clip(CPU_CHUNK_BYTES // alone_bytes, 1, len(query)))
            logits = jax.lax.map(logits_alone, query, batch_size=together)
        check_labels("accuracy", logits, labels)
        return masked_mean(hits(logits, labels), mask)

    return metric


def mse(apply: Apply) -> Metric:
    """The mean squared error on the query examples.

    Args:
      apply: `(params, x [examples, ...]) -> predictions`, of the shape of `y`.

    Returns:
      A metric of episodes whose batches are as those of `accuracy`.

    Raises:
      ValueError: when traced, if the predictions are of another shape.
    """
    check_function("mse: apply", apply, "params, x")
    loss = squared_error(apply)
    return lambda params, episode, rng: loss(params, episode.query, rng)[0]
