"""Meta-objectives: for each task a scalar, whose gradient is the meta-gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metajax import base
from metajax.arguments import (
    check_every_step,
    check_loss,
    check_nothing_learned,
    check_query,
    check_weights,
)
from metajax.base import Adapt, AdaptInfo, Array, Batch, Key, LossFn, Objective, Params, PyTree
from metajax.optimizers import only


def query_loss(loss: LossFn) -> Objective:
    r"""The loss of the adapted parameters on the query set: :math:`Q(\phi_T(\theta))`.

    Args:
      loss: `(params, batch, rng) -> (scalar, metrics)`.

    Returns:
      An objective with the metrics `query_loss`, `query` (the loss function's own metrics),
      `support_loss` `[num_steps]` and `support`.

    Raises:
      ValueError: if `loss` is not a function of three arguments; when traced, if the query set has
        no examples.

    Example:

    >>> import jax.numpy as jnp, optax, metajax
    >>> loss = lambda params, batch, rng: (jnp.sum((params - batch) ** 2), {})
    >>> adapt = metajax.inner_loop(loss, optax.sgd(0.1), num_steps=1)
    >>> learner = metajax.meta_learner(adapt, metajax.query_loss(loss), optax.adam(1e-3))

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      equation 1.
    """
    base.check_function("query_loss: loss", loss, "params, batch, rng")

    def objective(adapt, meta_params, episode, rng, /, *, inner_state=()):
        check_query("query_loss", episode.query)
        rng, query_rng = base.split_key(rng)
        adapted, info = adapt.apply(meta_params, episode.support, rng, inner_state=inner_state)
        value, aux, model = _on_query(loss, adapted, episode.query, query_rng)
        return value, (_metrics(info, query_loss=value, query=aux), _ended(info, model))

    return objective


def multi_step_query_loss(
    loss: LossFn, weights: Sequence[float] | Array | None = None
) -> Objective:
    r"""A weighted sum of the query losses after every step: :math:`\sum_t w_t Q(\phi_t)`.

    Args:
      loss: `(params, batch, rng) -> (scalar, metrics)`.
      weights: the weights of steps 1 to `num_steps`, used as given; by default all are
        `1 / num_steps`.

    Returns:
      An objective with the metrics of `query_loss`, measured after the last step.

    Raises:
      ValueError: if `loss` is not a function of three arguments; when traced, if the query set has
        no examples, if there are not `num_steps` weights, or if only the final parameters have a
        gradient (`implicit()`).

    Example:

    >>> import jax.numpy as jnp, optax, metajax
    >>> loss = lambda params, batch, rng: (jnp.sum((params - batch) ** 2), {})
    >>> adapt = metajax.inner_loop(loss, optax.sgd(0.1), num_steps=2)
    >>> objective = metajax.multi_step_query_loss(loss, weights=(0.3, 0.7))
    >>> learner = metajax.meta_learner(adapt, objective, optax.adam(1e-3))

    References:
      Antoniou et al., `How to train your MAML <https://arxiv.org/abs/1810.09502>`_, 2019,
      section 4, equation 2.
    """
    base.check_function("multi_step_query_loss: loss", loss, "params, batch, rng")
    check_weights("multi_step_query_loss", () if weights is None else weights)

    def objective(adapt, meta_params, episode, rng, /, *, inner_state=()):
        check_every_step("multi_step_query_loss", adapt)
        check_query("multi_step_query_loss", episode.query)
        rng, query_rng = base.split_key(rng)

        def probe(params, step):
            return _on_query(loss, params, episode.query, query_rng)

        _, info = adapt.apply(
            meta_params, episode.support, rng, inner_state=inner_state, probe=probe
        )
        values, num_steps = info.probe[0], len(info.loss)
        _check_weights("multi_step_query_loss", weights, num_steps)
        w = jnp.full(num_steps, 1 / num_steps) if weights is None else jnp.asarray(weights)
        value = jnp.sum(w.astype(values.dtype) * values[1:])
        last, aux, model = jax.tree.map(lambda x: x[-1], info.probe)
        return value, (_metrics(info, query_loss=last, query=aux), _ended(info, model))

    return objective


def online_loss() -> Objective:
    r"""The mean loss of every inner step's batch before that step: :math:`\frac{1}{T} \sum_t
    L(\phi_{t-1}, b_t)`.

    With `batches=per_step()`, the batches of a task are a stream, such as the chunks of a text.
    Each is predicted by parameters that have learned from those before it, and the outer loop
    learns the initialization with the least total loss. There is no query set.

    With `first_order()` the meta-gradient is the mean of the gradients of these losses, also with
    respect to parameters that do not adapt.

    Returns:
      An objective with the metrics `support_loss` `[num_steps]` and `support`.

    Raises:
      ValueError: when traced, if the inner loop has no steps, or if only the final parameters have
        a gradient (`implicit()`).

    Example, a number that drifts:

    >>> import jax, jax.numpy as jnp, optax, metajax
    >>> loss = lambda params, batch, rng: (jnp.mean((params - batch) ** 2), {})
    >>> adapt = metajax.inner_loop(
    ...     loss, optax.sgd(0.25), num_steps=3, batches=metajax.per_step())
    >>> learner = metajax.meta_learner(adapt, metajax.online_loss(), optax.adam(1e-3))
    >>> stream = metajax.Episode(support=jnp.asarray([[[1.0], [2.0], [3.0]]]), query=())
    >>> _, metrics = learner.update(learner.init(jnp.zeros(())), stream, jax.random.key(0))
    >>> [float(x) for x in metrics["support_loss"]]  # predicted: 0, 0.5, 1.25
    [1.0, 2.25, 3.0625]

    References:
      Javed and White, `Meta-Learning Representations for Continual Learning
      <https://arxiv.org/abs/1905.12588>`_, 2019, section 3; Tandon et al., `End-to-End Test-Time
      Training for Long Context <https://arxiv.org/abs/2512.23675>`_, 2025, section 2.
    """

    def objective(adapt, meta_params, episode, rng, /, *, inner_state=()):
        check_every_step("online_loss", adapt)
        if not adapt.num_steps:
            raise ValueError(
                "online_loss: an inner loop without steps has no losses before its steps; "
                "query_loss is the objective without adaptation."
            )
        rng, _ = base.split_key(rng)
        _, info = adapt.apply(meta_params, episode.support, rng, inner_state=inner_state)
        return jnp.mean(info.loss), (_metrics(info), info.inner_state)

    return objective


def displacement(loss: LossFn | None = None) -> Objective:
    r"""Reptile's objective: :math:`\frac{1}{2}\|\theta - \mathrm{sg}(\phi_T)\|^2`.

    Its gradient is :math:`\theta - \phi_T`. Gradient descent with step size :math:`\epsilon`
    is therefore the paper's :math:`\theta + \epsilon \cdot \mathrm{mean}_i(\phi_i - \theta)`,
    and any other optax optimizer treats the displacement as a gradient. A further derivative, such
    as that of a run in its learning rates, goes through the adaptation as its engine says.

    Args:
      loss: if given, the metrics include its value on the query set, as `query_loss` and `query`,
        for tasks that have one. It does not affect the gradient.

    Returns:
      An objective with the metrics `support_loss` `[num_steps]` and `support`.

    Raises:
      ValueError: if `loss` is neither `None` nor a function of three arguments.

    Example:

    >>> import jax.numpy as jnp, optax, metajax
    >>> loss = lambda params, batch, rng: (jnp.mean((params - batch) ** 2), {})
    >>> adapt = metajax.inner_loop(
    ...     loss, optax.sgd(0.1), 5, meta_gradient=metajax.first_order())
    >>> learner = metajax.meta_learner(adapt, metajax.displacement(), optax.sgd(0.5))

    References:
      Nichol et al., `On First-Order Meta-Learning Algorithms
      <https://arxiv.org/abs/1803.02999>`_, 2018, algorithm 2 and section 4.
    """

    def move(adapted, info, meta_params, *_):
        ends = base.split_state(adapted)[0], base.split_state(meta_params.params)[0]
        return jax.tree.map(jnp.subtract, *ends), info.inner_state

    return _descent("displacement", loss, move)


def last_update(loss: LossFn | None = None, *, tail: Adapt | None = None) -> Objective:
    r"""First-order MAML by the last mini-batch: :math:`\phi_{k-1} - \phi_k` is the meta-gradient.

    The objective is :math:`\frac{1}{2}\|\theta - \mathrm{sg}(\theta + \phi_k - \phi_{k-1})\|^2`.
    Gradient descent with step size :math:`\epsilon` adds :math:`\epsilon` times the mean last
    update. If the inner optimizer is SGD, that is the step of first-order MAML, with the product of
    inner and outer step size as its step size.

    Args:
      loss: if given, the metrics include its value on the query set, as in `displacement`.
      tail: an inner loop of one step, with the optimizer and carry of the other steps. It makes the
        last update on the *query*, whose examples are new to the inner loop ("separate tail").
        Without it the last update is the one on the last mini-batch of the support ("shared tail").

    Returns:
      An objective with the metrics of `displacement`.

    Raises:
      ValueError: for arguments of the wrong kind; when traced, if the inner loop has no steps or
        `tail` has another carry.

    Example:

    >>> import jax.numpy as jnp, optax, metajax
    >>> loss = lambda params, batch, rng: (jnp.mean((params - batch) ** 2), {})
    >>> def steps(num):
    ...     return metajax.inner_loop(
    ...         loss, optax.sgd(0.1), num, meta_gradient=metajax.first_order())
    >>> shared = metajax.meta_learner(steps(4), metajax.last_update(loss), optax.sgd(1.0))
    >>> separate = metajax.meta_learner(
    ...     steps(3), metajax.last_update(tail=steps(1)), optax.sgd(1.0))

    References:
      Nichol et al., `On First-Order Meta-Learning Algorithms
      <https://arxiv.org/abs/1803.02999>`_, 2018, sections 5.1 and 6.3.
    """

    def shared(adapted, info, *_):
        if not len(info.loss):
            raise ValueError("last_update: an inner loop without steps has no last update.")
        return jax.tree.map(lambda path: path[-1] - path[-2], info.probe), info.inner_state

    if tail is None:
        return _descent("last_update", loss, shared, probe=_params)
    base.check_kind("last_update: tail", tail, Adapt, "from inner_loop")

    def separate(before, info, meta_params, episode, rng, carry):
        if tail.carry != carry:
            raise ValueError(
                f"last_update: the tail was built with carry={tail.carry!r}, but the steps before "
                f"it with carry={carry!r}. The optimizer's state passes through both."
            )
        # The tail continues from the optimizer's state, which passes to no other task.
        adapted, tail_info = (tail if carry else tail.rebuild(carry="mean")).apply(
            meta_params._replace(params=before),
            episode.query,
            jax.random.fold_in(rng, 1),
            inner_state=info.opt_state,
        )
        optimizer, model = base.split_inner(tail_info.inner_state)
        ends = base.split_state(adapted)[0], base.split_state(before)[0]
        return jax.tree.map(jnp.subtract, *ends), base.join_inner(optimizer if carry else (), model)

    return _descent("last_update", loss, separate)


def weighted_updates(weights: Sequence[float], loss: LossFn | None = None) -> Objective:
    r"""A linear combination of the inner updates: :math:`\sum_i w_i (\phi_{i-1} - \phi_i)`.

    With SGD as the inner optimizer these are its inner gradients :math:`g_i` times its step size.
    If all weights are 1, it is Reptile. If only the last is 1 and all others are 0, it is
    first-order MAML with a shared tail.

    Args:
      weights: one weight for each inner step.
      loss: if given, the metrics include its value on the query set, as in `displacement`.

    Returns:
      An objective with the metrics of `displacement`.

    Raises:
      ValueError: for weights that are no numbers; when traced, if there are not `num_steps`.

    Example:

    >>> import jax.numpy as jnp, optax, metajax
    >>> loss = lambda params, batch, rng: (jnp.mean((params - batch) ** 2), {})
    >>> adapt = metajax.inner_loop(
    ...     loss, optax.sgd(0.1), 3, meta_gradient=metajax.first_order())
    >>> learner = metajax.meta_learner(
    ...     adapt, metajax.weighted_updates((0.0, 0.5, 0.5)), optax.sgd(0.25))

    References:
      Nichol et al., `On First-Order Meta-Learning Algorithms
      <https://arxiv.org/abs/1803.02999>`_, 2018, section 6.2, figure 3.
    """
    check_weights("weighted_updates", weights)

    def move(adapted, info, *_):
        _check_weights("weighted_updates", weights, len(info.loss))

        def combined(path):
            return jnp.tensordot(jnp.asarray(weights, path.dtype), jnp.diff(path, axis=0), axes=1)

        return jax.tree.map(combined, info.probe), info.inner_state

    return _descent("weighted_updates", loss, move, probe=_params)


def _descent(
    name: str,
    loss: LossFn | None,
    move: Callable[..., tuple[Params, PyTree]],
    probe: Callable[[Params, Array | int], PyTree] | None = None,
) -> Objective:
    """Half the squared length of a step of the parameters, with minus the step as its gradient.

    Parameters that count the inner steps are left out.

    Args:
      name: the name of the objective.
      loss: if given, it is measured on the query set, before any update on the query.
      move: `(adapted, info, meta_params, episode, rng, carry) -> (step, inner_state)`.
      probe: the probe of the adaptation.
    """
    if loss is not None:
        base.check_function(f"{name}: loss", loss, "params, batch, rng")

    def objective(adapt, meta_params, episode, rng, /, *, inner_state=()):
        check_nothing_learned(meta_params)
        params = base.split_state(meta_params.params)[0]
        rng, query_rng = base.split_key(rng)
        adapted, info = adapt.apply(
            meta_params, episode.support, rng, inner_state=inner_state, probe=probe
        )
        if not base.same_structure(base.split_state(adapted)[0], params):
            raise ValueError(
                f"{name}: adaptation moves parameters with the structure "
                f"{jax.tree.structure(adapted)}, but the meta-learned ones have "
                f"{jax.tree.structure(params)}: use query_loss where the inner loop adds some."
            )
        step, ended = move(adapted, info, meta_params, episode, rng, adapt.carry)
        value = _half_square(
            *(only(x, lambda path: not adapt.counts(path)) for x in (params, step))
        )
        metrics = _metrics(info)
        if loss is not None and base.num_numbers(episode.query):
            measured, aux, _ = _on_query(loss, adapted, episode.query, query_rng)
            metrics = _metrics(info, query_loss=measured, query=aux)
        return value, (metrics, ended)

    return objective


@jax.custom_jvp
def _half_square(params: Params, step: Params) -> Array:
    """Half the squared length of a step, whose gradient in the parameters is minus the step.

    Further derivatives see the step as it is, such as that of a run in its learning rates.
    """
    return 0.5 * sum((jnp.sum(s**2) for s in jax.tree.leaves(step)), start=jnp.zeros(()))


@_half_square.defjvp
def _half_square_jvp(primals, tangents):
    value = _half_square(*primals)
    return value, -optax.tree.vdot(primals[1], tangents[0]).astype(value.dtype)


def _params(params: Params, step: Array | int) -> Params:
    """A probe of the path that the parameters take."""
    return base.split_state(params)[0]


def _on_query(loss: LossFn, params: Params, query: Batch, rng: Key) -> tuple[Array, PyTree, PyTree]:
    """The loss on the query set, its metrics and the state that the model leaves."""
    return check_loss(loss(params, query, rng), base.split_state(params)[1])


def _ended(info: AdaptInfo, model: PyTree) -> PyTree:
    """The state for the next task, with the model's state after the query."""
    return base.join_inner(base.split_inner(info.inner_state).optimizer, model)


def _check_weights(name: str, weights: Sequence[float] | Array | None, num_steps: int) -> None:
    if not num_steps or (weights is not None and np.shape(weights) != (num_steps,)):
        raise ValueError(
            f"{name}: {num_steps} adaptation steps need as many weights, at least one; got "
            f"{'none' if weights is None else f'the shape {np.shape(weights)}'}."
        )


def _metrics(info: AdaptInfo, **query: PyTree) -> dict[str, Any]:
    return {**query, "support_loss": info.loss, "support": info.aux}
