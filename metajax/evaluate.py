"""Evaluation: adapt to many tasks and score the parameters after every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from metajax import base
from metajax.base import (
    Adapt,
    AdaptInfo,
    Array,
    Episode,
    Key,
    MetaParams,
    MetaState,
    Params,
    PyTree,
)
from metajax.learner import check_episodes, check_state
from metajax.losses import (
    Apply,
    check_labels,
    check_size,
    hits,
    masked_mean,
    squared_error,
    unpack,
    without_padding,
)
from metajax.machine import CPU_CHUNK_BYTES
from metajax.parallel import map_tasks, over_tasks

Metric = Callable[[Params, Episode, Key], PyTree]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class AtSteps(NamedTuple):
    """An expensive metric that `evaluate` computes after some adaptation steps only.

    Attributes:
      metric: `(params, episode, rng) -> pytree of scalars`.
      steps: the numbers of adaptation steps after which it is computed; 0 is before the first.

    Example, the accuracy before adaptation and after the tenth step:

    >>> import metajax
    >>> alone = metajax.accuracy(lambda params, x: x @ params, transductive=False)
    >>> metric = {"alone": metajax.AtSteps(alone, (0, 10))}
    """

    metric: Metric
    steps: Sequence[int]


class OfAdaptation(NamedTuple):
    """A metric of the adaptation itself, such as the losses before its steps.

    Attributes:
      metric: `AdaptInfo -> pytree of arrays`.

    Example, the losses before each step, and how much the last is below the first:

    >>> import metajax
    >>> metric = metajax.OfAdaptation(
    ...     lambda info: {"loss": info.loss, "fall": info.loss[0] - info.loss[-1]})
    """

    metric: Callable[[AdaptInfo], PyTree]


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
    r"""Adapts to every task and scores the parameters before the first and after every step.

    With :math:`m_{i,t}` the metric of task :math:`i` after :math:`t` steps, the results are
    :math:`\bar m_t = \frac{1}{n} \sum_i m_{i,t}` and the half-width of its 95% interval,
    :math:`1.96\, \mathrm{std}_i(m_{i,t}) / \sqrt{n}`.

    Every task starts from the given state, including its carried inner state. Call `evaluate`
    within `jax.jit`: a repeated call then takes milliseconds instead of most of a second.

    Args:
      adapt: an inner loop from `metajax.inner_loop` or `learner.inner.rebuild`. It may take more
        steps or other batches than training.
      metric: `(params, episode, rng) -> pytree of scalars`, such as `accuracy(apply)`, or a dict
        of several. Of arrays, every entry is a score, and their axes come behind that of the steps.
        A metric within `AtSteps` is computed after some steps only, one within `OfAdaptation` once,
        from the report of the adaptation.
      meta_state: the state to evaluate, or only its meta-parameters, such as the result of
        `train.load_meta_params`.
      episodes: tasks, leaves `[tasks, ...]`.
      rng: a key for the inner loop's batches, the loss and the metric.
      task_chunk: tasks per `vmap`, see `meta_learner`.
      mesh: devices that share the tasks, see `meta_learner`.

    Returns:
      A dict with, for every metric, arrays `[num_steps + 1]`, `[len(steps)]` within `AtSteps`,
      or the arrays of `OfAdaptation`:

      - `mean` and `ci95`, the half-width, which is infinite for a single task;
      - `quantiles`, a dict of the quantiles 0.05, 0.25, 0.5, 0.75 and 0.95 over tasks. Values that
        are not numbers count as infinite;
      - `increased`, the share of tasks whose value is above that before adaptation (the first of
        `AtSteps`) or is not a number. Of an error, that is the share of tasks that diverge;

      and `num_tasks`.

    Raises:
      ValueError: for arguments of the wrong kind; for a meta-batch whose arrays disagree on the
        number of tasks; for a state whose learned inner parameters are not those of `adapt`; if
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
    scores = score_tasks(adapt, metric, meta_state, episodes, rng, task_chunk=task_chunk, mesh=mesh)
    return summarize(scores)


def score_tasks(
    adapt: Adapt,
    metric: PyTree,
    meta_state: MetaState | MetaParams,
    episodes: Episode,
    rng: Key,
    *,
    task_chunk: int | None = None,
    mesh: Mesh | None = None,
) -> PyTree:
    """The scores of every task, `[tasks, num_steps + 1]`; the arguments are those of `evaluate`."""
    base.check_kind("evaluate: adapt", adapt, Adapt, "from inner_loop or learner.inner")
    for each in jax.tree.leaves(metric, is_leaf=_is_wrapped) or [None]:
        fn = each.metric if _is_wrapped(each) else each
        arguments = "info" if isinstance(each, OfAdaptation) else "params, episode, rng"
        base.check_function("evaluate: metric", fn, arguments, " such as accuracy(apply)")
    if isinstance(meta_state, MetaParams):
        meta_state = MetaState(meta_state, (), (), jnp.zeros(()))
    check_state(meta_state)
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
                    is_leaf=_is_wrapped,
                ),
            )
            return jax.tree.map(
                lambda m, probed: _selected(m, probed, info),
                metric,
                info.probe,
                is_leaf=_is_wrapped,
            )

        return map_tasks(one, *tasks), carry

    scores, _ = over_tasks(score, task_chunk=task_chunk, mesh=mesh, stack=True)(
        (meta_state.meta_params, meta_state.inner_state),
        (episodes, base.split_key(rng, num_tasks)),
    )
    return scores


def summarize(scores: PyTree) -> dict[str, Any]:
    """The result of `evaluate` for the scores of every task, `[tasks, num_steps + 1]`."""
    num_tasks = len(jax.tree.leaves(scores)[0])

    def interval(x: Array) -> Array:
        if num_tasks == 1:
            return jnp.full(x.shape[1:], jnp.inf)
        return 1.96 * jnp.std(x, axis=0) / num_tasks**0.5

    def increased(x: Array) -> Array:
        return jnp.mean(~(x <= (x[:, :1] if x.ndim > 1 else x)), axis=0)

    def quantile(q: float, x: Array) -> Array:
        # Interpolation would turn infinite values into NaN.
        return jnp.quantile(jnp.where(jnp.isnan(x), jnp.inf, x), q, axis=0, method="nearest")

    return {
        "mean": jax.tree.map(lambda x: jnp.mean(x, axis=0), scores),
        "ci95": jax.tree.map(interval, scores),
        "quantiles": {q: jax.tree.map(partial(quantile, q), scores) for q in QUANTILES},
        "increased": jax.tree.map(increased, scores),
        "num_tasks": num_tasks,
    }


def _is_wrapped(x: Any) -> bool:
    return isinstance(x, AtSteps | OfAdaptation)


def _measured(metric: Metric | AtSteps | OfAdaptation, step: Array | int, *args: Any) -> PyTree:
    if isinstance(metric, OfAdaptation):
        return ()
    if isinstance(metric, AtSteps):
        return jax.lax.cond(
            jnp.isin(step, _steps(metric)),
            lambda: _measured(metric.metric, step, *args),
            lambda: jax.tree.map(
                lambda s: jnp.zeros(s.shape, s.dtype),
                jax.eval_shape(lambda: _measured(metric.metric, step, *args)),
            ),
        )
    measured = base.as_arrays("evaluate: metric", metric(*args))
    if not jax.tree.leaves(measured):
        raise ValueError("evaluate: the metric returns no array: it must return scalars.")
    return measured


def _selected(metric: Metric | AtSteps | OfAdaptation, probed: PyTree, info: AdaptInfo) -> PyTree:
    """The rows of the steps in `AtSteps`, or what `OfAdaptation` makes of the report."""
    if isinstance(metric, OfAdaptation):
        return base.as_arrays("evaluate: metric", metric.metric(info._replace(probe=())))
    if not isinstance(metric, AtSteps):
        return probed
    steps, last = _steps(metric), len(jax.tree.leaves(probed)[0]) - 1
    if not np.isin(steps, range(last + 1)).all():
        raise ValueError(
            f"evaluate: AtSteps.steps must be within 0 to {last}, the number of adaptation steps; "
            f"got {metric.steps!r}."
        )
    return jax.tree.map(lambda x: x[steps], probed)


def accuracy(apply: Apply, *, transductive: bool = True) -> Metric:
    """The fraction of query examples whose highest logit is that of the label, from 0 to 1.

    In the transductive setting the model receives the whole query set as one batch, so batch
    statistics carry information from each query to the others. Otherwise it receives one query at
    a time, together with the support. With n queries that takes about n times longer; `AtSteps`
    limits it to a few steps.

    Args:
      apply: the model, `(params, x [examples, ...]) -> logits [examples, ways]`.
      transductive: whether all queries form one batch, instead of each query and the support.

    Returns:
      A metric of episodes with batches `(x, labels)`, `(x, labels, mask)` or dicts of `"x"`, `"y"`
      and `"mask"`, see `cross_entropy`. It returns a scalar.

    Raises:
      ValueError: if `apply` is not a function of two arguments; when traced, for labels that are
        not class numbers `[examples]`.

    Example:

    >>> import jax, jax.numpy as jnp, metajax
    >>> metric = metajax.accuracy(lambda params, x: x @ params)
    >>> batch = jnp.eye(4), jnp.asarray([0, 1, 2, 0])
    >>> float(metric(jnp.eye(4), metajax.Episode(batch, batch), jax.random.key(0)))
    0.75

    References:
      Nichol et al., `On First-Order Meta-Learning Algorithms
      <https://arxiv.org/abs/1803.02999>`_, 2018, section 6.1.
    """
    base.check_function("accuracy: apply", apply, "params, x")

    def metric(params: Params, episode: Episode, rng: Key) -> Array:
        query, labels, mask = unpack(episode.query)
        check_size("accuracy", labels)
        query, labels = without_padding(mask, query, labels)

        def logits_alone(x: Array) -> Array:
            return apply(params, jnp.concatenate([support, x[None]]))[-1]

        if transductive:
            logits = apply(params, query)
        else:
            support, _, support_mask = unpack(episode.support)
            (support,) = without_padding(support_mask, support)
            if support.shape[1:] != query.shape[1:]:
                raise ValueError(
                    "accuracy: transductive=False classifies each query beside the support, but "
                    f"examples of the support have the shape {list(support.shape[1:])}, those of "
                    f"the query {list(query.shape[1:])}."
                )
            # As many at a time as a CPU's cache holds. An accelerator is busy with the tasks.
            alone_bytes = (len(support) + 1) * query[0].size * query.dtype.itemsize
            together = int(np.clip(CPU_CHUNK_BYTES // alone_bytes, 1, len(query)))
            logits = jax.lax.map(logits_alone, query, batch_size=together)
        check_labels("accuracy", logits, labels)
        return masked_mean(hits(logits, labels), mask)

    return metric


def mse(apply: Apply) -> Metric:
    """The mean squared error on the query examples, see `squared_error`.

    Args:
      apply: the model, `(params, x [examples, ...]) -> predictions`, of the shape of `y`.

    Returns:
      A metric of episodes with batches in the forms that `squared_error` takes. It returns a
      scalar.

    Raises:
      ValueError: if `apply` is not a function of two arguments; when traced, if predictions and
        `y` differ in shape.

    Example:

    >>> import jax, jax.numpy as jnp, metajax
    >>> metric = metajax.mse(lambda params, x: x @ params)
    >>> batch = jnp.ones((5, 2)), 3 * jnp.ones(5)
    >>> float(metric(jnp.zeros(2), metajax.Episode(batch, batch), jax.random.key(0)))
    9.0
    """
    base.check_function("mse: apply", apply, "params, x")
    loss = squared_error(apply)
    return lambda params, episode, rng: loss(params, episode.query, rng)[0]


def _steps(metric: AtSteps) -> np.ndarray:
    steps = np.asarray(metric.steps)
    if steps.ndim != 1 or not steps.size or steps.dtype.kind not in "iu":
        raise ValueError(
            f"evaluate: AtSteps.steps must be integers [n], such as (0, 1); got {metric.steps!r}."
        )
    return steps
