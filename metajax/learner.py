"""The meta-learner: tasks in parallel, their mean meta-gradient, one outer optax step."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from metajax.base import (
    Adapt,
    Batch,
    Episode,
    Key,
    MetaLearner,
    MetaParams,
    MetaState,
    Metrics,
    Objective,
    Params,
    PyTree,
)


def over_tasks(
    fn: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]],
    *,
    task_chunk: int | None = None,
    stack: bool = False,
) -> Callable[..., tuple[PyTree, PyTree]]:
    """Runs a function of a chunk of tasks over all tasks: the only task map of the library.

    A chunk is one `vmap`, chunks follow each other in a scan, so that memory grows with
    `task_chunk` and not with the number of tasks. The result does not depend on `task_chunk`
    beyond rounding.

    Args:
      fn: `(shared, tasks, thread) -> (result, thread)` on a chunk of tasks, leaves
        `[chunk, ...]`. The result is the mean over the chunk or, with `stack`, one per task
        `[chunk, ...]`; the thread is handed from chunk to chunk.
      task_chunk: tasks per chunk; all of them by default. A last, smaller chunk takes the rest.
      stack: concatenate the chunks' results `[tasks, ...]` instead of averaging over tasks.

    Returns:
      `(shared, tasks, thread=()) -> (result, thread)` on leaves `[tasks, ...]`.

    Raises:
      ValueError: if `task_chunk` is not a positive integer.
    """
    if task_chunk is not None and (not isinstance(task_chunk, int) or task_chunk < 1):
        raise ValueError(f"task_chunk must be a positive integer or None, got {task_chunk!r}.")

    def mapped(shared: PyTree, tasks: PyTree, thread: PyTree = ()) -> tuple[PyTree, PyTree]:
        num_tasks = jax.tree.leaves(tasks)[0].shape[0]
        if task_chunk is None or task_chunk >= num_tasks:
            return fn(shared, tasks, thread)
        num_chunks, rest = divmod(num_tasks, task_chunk)
        split = num_chunks * task_chunk
        chunks = jax.tree.map(
            lambda x: x[:split].reshape(num_chunks, task_chunk, *x.shape[1:]), tasks
        )

        def weighted(total: PyTree, result: PyTree, weight: float) -> PyTree:
            # Integers (step counts of an optimizer) are equal over tasks: kept, not averaged.
            return jax.tree.map(
                lambda t, r: t + weight * r if jnp.issubdtype(r.dtype, jnp.inexact) else r,
                total,
                result,
            )

        def body(carried, chunk):
            total, thread = carried
            result, thread = fn(shared, chunk, thread)
            if stack:
                return (total, thread), result
            return (weighted(total, result, task_chunk / num_tasks), thread), ()

        shapes = () if stack else jax.eval_shape(fn, shared, _at(chunks, 0), thread)[0]
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        (result, thread), stacked = jax.lax.scan(body, (zeros, thread), chunks)
        if stack:
            result = jax.tree.map(lambda x: x.reshape(split, *x.shape[2:]), stacked)
        if rest:
            tail, thread = fn(shared, jax.tree.map(lambda x: x[split:], tasks), thread)
            if stack:
                result = jax.tree.map(lambda *xs: jnp.concatenate(xs), result, tail)
            else:
                result = weighted(result, tail, rest / num_tasks)
        return result, thread

    return mapped


def meta_learner(
    adapt: Adapt,
    objective: Objective,
    outer_optimizer: optax.GradientTransformation,
    *,
    task_chunk: int | None = None,
) -> MetaLearner:
    r"""Learns what adapts well: one outer step on the mean meta-objective of a meta-batch.

    .. math::
      \theta \leftarrow \mathrm{opt}\Big(\theta,\; \nabla_\theta \frac{1}{n} \sum_{i=1}^{n}
      J(\mathrm{adapt}(\theta, \mathrm{support}_i), \mathrm{query}_i)\Big)

    Every algorithm of the library is this function with another adaptation, way for the gradient
    to cross it, or objective.

    Args:
      adapt: an inner loop from `metajax.inner_loop`.
      objective: `query_loss(loss)`, `multi_step_query_loss(loss)`, `displacement()` or your own.
      outer_optimizer: any optax transformation; it sees `MetaParams`.
      task_chunk: tasks per `vmap`; all by default. Smaller chunks need less memory, and are often
        faster on a CPU. No number depends on it beyond rounding.

    Returns:
      A `MetaLearner`. `update` reports, averaged over tasks, what the objective measures
      (`query_loss`, `support_loss` before each inner step, the loss function's own metrics under
      `query` and `support`), the `objective` and the global norms of the meta-gradient,
      `meta_gradient_norm` and, with learned inner parameters, `meta_gradient_norm_inner`.

    Raises:
      ValueError: for arguments of the wrong kind; when `update` is traced, for a meta-batch whose
        arrays disagree on the number of tasks.

    Example, joint pretraining as the learner with zero inner steps:

    >>> import jax, jax.numpy as jnp, optax, metajax
    >>> loss = lambda params, batch, rng: (jnp.mean((params - batch) ** 2), {})
    >>> adapt = metajax.inner_loop(loss, optax.sgd(0.1), num_steps=0)
    >>> learner = metajax.meta_learner(adapt, metajax.query_loss(loss), optax.sgd(0.1))
    >>> state = learner.init(jnp.zeros(()))
    >>> episodes = metajax.Episode(support=jnp.zeros((4, 5)), query=jnp.ones((4, 5)))
    >>> state, metrics = jax.jit(learner.update)(state, episodes, jax.random.key(0))
    >>> float(metrics["query_loss"])
    1.0

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      algorithm 1.
    """
    if not isinstance(adapt, Adapt):
        raise ValueError(f"meta_learner: adapt must come from inner_loop, got {adapt!r}.")
    if not callable(objective):
        raise ValueError(
            "meta_learner: the objective must be a function such as query_loss(loss), got "
            f"{objective!r}."
        )
    if not (hasattr(outer_optimizer, "init") and hasattr(outer_optimizer, "update")):
        raise ValueError(
            "meta_learner: the outer optimizer must be an optax transformation such as "
            f"optax.adam(1e-3), got {outer_optimizer!r}."
        )
    serial = adapt.carry == "serial"

    def chunk_gradient(shared, tasks, thread):
        meta_params, inner_state = shared
        start = thread if serial else inner_state

        def mean_objective(meta_params):
            def of_task(episode, rng):
                return objective(adapt, meta_params, episode, rng, inner_state=start)

            values, (metrics, ended) = jax.vmap(of_task)(*tasks)
            value = jnp.mean(values)
            return value, ({"objective": value, **_mean(metrics)}, _mean(ended))

        gradient, (metrics, ended) = jax.grad(mean_objective, has_aux=True)(meta_params)
        return (gradient, metrics, () if serial else ended), (ended if serial else thread)

    # State that flows from task to task leaves nothing to run in parallel.
    mean_gradient = over_tasks(chunk_gradient, task_chunk=1 if serial else task_chunk)

    def init(params: Params) -> MetaState:
        inner, inner_state = adapt.init(params)
        meta_params = MetaParams(params, inner)
        opt_state = outer_optimizer.init(meta_params)
        return MetaState(meta_params, opt_state, inner_state, jnp.zeros((), jnp.int32))

    def adapt_to(state: MetaState, support: Batch, rng: Key) -> Params:
        check_state(state)
        return adapt.apply(state.meta_params, support, rng, inner_state=state.inner_state)[0]

    def update(state: MetaState, episodes: Episode, rng: Key) -> tuple[MetaState, Metrics]:
        check_state(state)
        rngs = jax.random.split(rng, check_episodes(episodes))
        (gradient, metrics, ended), thread = mean_gradient(
            (state.meta_params, state.inner_state),
            (episodes, rngs),
            state.inner_state if serial else (),
        )
        updates, opt_state = outer_optimizer.update(gradient, state.opt_state, state.meta_params)
        meta_params = optax.apply_updates(state.meta_params, updates)
        metrics["meta_gradient_norm"] = optax.tree.norm(gradient)
        if jax.tree.leaves(gradient.inner):
            metrics["meta_gradient_norm_inner"] = optax.tree.norm(gradient.inner)
        inner_state = thread if serial else ended
        return MetaState(meta_params, opt_state, inner_state, state.step + 1), metrics

    return MetaLearner(init, adapt_to, update)


def check_state(state: MetaState) -> None:
    """Raises `ValueError` for anything but a `MetaState`."""
    if not isinstance(state, MetaState):
        raise ValueError(
            f"expected the MetaState that learner.init(params) returns, got {type(state).__name__}."
        )


def check_episodes(episodes: Episode) -> int:
    """Returns the number of tasks, or says which arrays disagree on it."""
    if not isinstance(episodes, Episode):
        raise ValueError(
            f"expected a metajax.Episode(support=..., query=...), got {type(episodes).__name__}."
        )
    first: tuple[str, int] | None = None
    for path, leaf in jax.tree_util.tree_leaves_with_path(episodes):
        name = f"episodes{jax.tree_util.keystr(path)}"
        if not jnp.ndim(leaf):
            raise ValueError(
                f"{name} is a scalar; every array of a meta-batch is [tasks, ...]. For a single "
                "task add the axis with jax.tree.map(lambda x: x[None], episode)."
            )
        first = first or (name, leaf.shape[0])
        if leaf.shape[0] != first[1]:
            raise ValueError(
                f"{name} has {leaf.shape[0]} tasks on its leading axis, {first[0]} has "
                f"{first[1]}; every array of a meta-batch is [tasks, ...] with the same number "
                "of tasks."
            )
    if first is None or first[1] == 0:
        raise ValueError("the meta-batch is empty: it needs at least one task.")
    return first[1]


def _mean(stacked: PyTree) -> PyTree:
    """Averages over tasks; integers (an optimizer's step count) are equal and kept."""
    return jax.tree.map(
        lambda x: jnp.mean(x, axis=0) if jnp.issubdtype(x.dtype, jnp.inexact) else x[0], stacked
    )


def _at(tree: PyTree, index: int) -> PyTree:
    return jax.tree.map(lambda x: x[index], tree)
