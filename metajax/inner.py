"""Adaptation to one task: the only inner loop of the library."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metajax.base import Adapt, AdaptInfo, Array, Batch, Key, LossFn, MetaParams, Params, PyTree
from metajax.batches import Batches, full_batch
from metajax.gradients import MetaGradient, second_order

CARRIES = (None, "mean", "serial")

NOT_DIFFERENTIABLE = (
    "inner_loop: the derivative of the inner optimizer's update is not finite where a gradient is "
    "zero, so the first dead unit would turn the second-order meta-gradient into NaN. For "
    "optax.adam and its relatives pass eps_root, as in optax.adam(lr, eps_root=1e-8); or choose "
    "first_order() or implicit(), which do not differentiate the update."
)


class LearnedOptimizer(NamedTuple):
    """An inner optimizer with meta-learned hyper-parameters.

    Attributes:
      init: `params -> hyper-parameters`, a pytree of float arrays, learned by the outer loop.
      make: `hyper-parameters -> optax transformation`.

    Example, one learned step size for all parameters:

    >>> import jax.numpy as jnp, optax, metajax
    >>> learned = metajax.LearnedOptimizer(
    ...     init=lambda params: jnp.asarray(0.1), make=lambda rate: optax.sgd(rate))
    >>> adapt = metajax.inner_loop(lambda w, x, rng: ((w * x) ** 2, {}), learned, num_steps=2)
    >>> inner, _ = adapt.init(jnp.asarray(1.0))
    """

    init: Callable[[Params], PyTree]
    make: Callable[[PyTree], optax.GradientTransformation]


def inner_loop(
    loss: LossFn,
    optimizer: optax.GradientTransformation | LearnedOptimizer,
    num_steps: int,
    *,
    meta_gradient: MetaGradient | None = None,
    proximal: float = 0.0,
    batches: Batches | None = None,
    carry: str | None = None,
    unroll: int = 1,
) -> Adapt:
    r"""Adapts parameters to one task by `num_steps` steps of an optax optimizer.

    .. math::
      \phi_0 = \theta, \quad \phi_{t+1} = \phi_t + \mathrm{opt}\big(
      \nabla_\phi [L(\phi_t, b_t) + \tfrac{\lambda}{2} \|\phi_t - \theta\|^2]\big)

    Args:
      loss: `(params, batch, rng) -> (scalar, metrics)`.
      optimizer: any optax transformation, or a `LearnedOptimizer`.
      num_steps: the number of adaptation steps, static; 0 leaves the parameters as they are.
      meta_gradient: how gradients cross the loop: `second_order()` (default), `mixed_mode()`,
        `first_order()` or `implicit()`.
      proximal: the coefficient of the pull towards the initialization.
      batches: what each step sees of the support: `full_batch()` (default), `cycle(size)`,
        `replacement(size)` or `per_step()`.
      carry: `None` starts every task from a fresh optimizer state. `"mean"` starts all tasks of a
        meta-batch from one state and averages what they end with; `"serial"` runs the tasks one
        after another, handing the state on.
      unroll: inner steps per iteration of the compiled loop.

    Returns:
      An `Adapt`: `init(params)` and `apply(meta_params, support, rng, ...)`.

    Raises:
      ValueError: for arguments that do not fit together; when `apply` is traced, for a loss that
        does not return `(scalar, metrics)`.

    Example:

    >>> import jax, jax.numpy as jnp, optax, metajax
    >>> def loss(params, batch, rng):
    ...     x, y = batch
    ...     return jnp.mean((x @ params - y) ** 2), {}
    >>> adapt = metajax.inner_loop(loss, optax.sgd(0.1), num_steps=3)
    >>> support = jnp.ones((5, 2)), jnp.zeros(5)
    >>> adapted, info = adapt.apply(
    ...     metajax.MetaParams(jnp.ones(2)), support, jax.random.key(0))
    >>> adapted.shape, info.loss.shape
    ((2,), (3,))

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      algorithm 1; the proximal term: Rajeswaran et al., 2019, equation 3.
    """
    meta_gradient = second_order() if meta_gradient is None else meta_gradient
    batches = full_batch() if batches is None else batches
    _check_arguments(loss, optimizer, num_steps, meta_gradient, proximal, batches, carry)

    def make(inner: PyTree) -> optax.GradientTransformation:
        return optimizer.make(inner) if isinstance(optimizer, LearnedOptimizer) else optimizer

    def init(params: Params) -> tuple[PyTree, PyTree]:
        _check_params(params)
        inner = optimizer.init(params) if isinstance(optimizer, LearnedOptimizer) else ()
        if meta_gradient.crosses_optimizer and num_steps:
            _check_differentiable(make(_concrete(inner)), params)
        return inner, (make(inner).init(params) if carry else ())

    def apply(
        meta_params: MetaParams,
        support: Batch,
        rng: Key,
        *,
        inner_state: PyTree = (),
        probe: Callable[[Params, Array | int], PyTree] | None = None,
    ) -> tuple[Params, AdaptInfo]:
        initial, inner = meta_params
        transform = make(inner)
        batch_rng, loss_rng = jax.random.split(rng)
        batch_at = batches(support, num_steps, batch_rng)

        def penalized(params, initial, batch, rng):
            value, aux = check_loss(loss(params, batch, rng))
            pull = 0.5 * proximal * _squared_distance(params, initial) if proximal else 0.0
            return value + pull, (value, aux)

        def operands(step):
            return initial, batch_at(step), jax.random.fold_in(loss_rng, step)

        gradient = meta_gradient.gradient(penalized)

        @meta_gradient.step
        def take_step(params, opt_state, step):
            grads, (value, aux) = gradient(params, *operands(step))
            updates, opt_state = transform.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, (value, aux)

        def body(state, step):
            params, opt_state = state
            probed = probe(params, step) if probe else ()
            params, opt_state, (value, aux) = take_step(params, opt_state, step)
            return (params, opt_state), (value, aux, probed)

        if carry is None and jax.tree.leaves(inner_state):
            raise ValueError(
                "inner_loop: got a carried inner_state, but this adaptation was built with "
                'carry=None. Build it with the carry of training ("mean" or "serial").'
            )
        opt_state = inner_state if carry and inner_state != () else transform.init(initial)
        (params, opt_state), (values, auxes, probed) = jax.lax.scan(
            body, (initial, opt_state), jnp.arange(num_steps), unroll=unroll
        )

        def optimality(params):
            return jax.grad(penalized, has_aux=True)(params, *operands(num_steps - 1))[0]

        adapted = meta_gradient.solution(params, optimality)
        if probe:
            last = probe(adapted, num_steps)
            probed = jax.tree.map(lambda xs, x: jnp.concatenate([xs, x[None]]), probed, last)
        return adapted, AdaptInfo(values, auxes, probed, opt_state if carry else ())

    return Adapt(
        init,
        apply,
        carry,
        differentiates_steps=not meta_gradient.implicit,
        forward=meta_gradient.forward,
    )


def check_loss(result: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
    """Passes on what a loss returned, or says what is wrong with it."""
    if not (isinstance(result, tuple) and len(result) == 2):
        raise ValueError(
            "the loss must return (scalar, metrics), for example `return value, {}`; it returned "
            f"{type(result).__name__}."
        )
    if jnp.shape(result[0]) != ():
        raise ValueError(
            f"the loss must return a scalar, it returned shape {jnp.shape(result[0])}: average "
            "over the examples, for example with jnp.mean."
        )
    return result


def _squared_distance(a: Params, b: Params) -> Array | float:
    return sum(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum((x - y) ** 2), a, b)), start=0.0)


def _check_arguments(loss, optimizer, num_steps, meta_gradient, proximal, batches, carry) -> None:
    if not callable(loss):
        raise ValueError(f"inner_loop: loss must be a function (params, batch, rng), got {loss!r}.")
    if not isinstance(optimizer, LearnedOptimizer) and not (
        hasattr(optimizer, "init") and hasattr(optimizer, "update")
    ):
        raise ValueError(
            "inner_loop: the optimizer must be an optax transformation such as optax.sgd(0.01), "
            f"or a LearnedOptimizer; got {optimizer!r}."
        )
    if isinstance(num_steps, bool) or not isinstance(num_steps, int | np.integer) or num_steps < 0:
        raise ValueError(
            "inner_loop: num_steps is static and must be a non-negative integer, got "
            f"{num_steps!r}."
        )
    if not isinstance(meta_gradient, MetaGradient):
        raise ValueError(
            "inner_loop: meta_gradient must be second_order(), mixed_mode(), first_order() or "
            f"implicit() (mind the parentheses), got {meta_gradient!r}."
        )
    if proximal < 0:
        raise ValueError(f"inner_loop: proximal must not be negative, got {proximal}.")
    if carry not in CARRIES:
        raise ValueError(f"inner_loop: carry must be one of {CARRIES}, got {carry!r}.")
    if meta_gradient.implicit:
        wrong = {
            "proximal > 0": proximal <= 0,
            "batches=full_batch()": batches is not full_batch(),
            "at least one inner step": num_steps == 0,
            "an inner optimizer without learned hyper-parameters": isinstance(
                optimizer, LearnedOptimizer
            ),
        }
        if any(wrong.values()):
            raise ValueError(
                "inner_loop: implicit() differentiates the minimizer of a fixed, proximally "
                "regularized problem, so it requires "
                + " and ".join(need for need, missing in wrong.items() if missing)
                + "."
            )


def _check_params(params: Params) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = getattr(leaf, "dtype", None)
        if not isinstance(leaf, float) and (
            dtype is None or not jnp.issubdtype(dtype, jnp.floating)
        ):
            raise ValueError(
                f"params{jax.tree_util.keystr(path)} is {dtype or type(leaf).__name__}, but only "
                "floating-point arrays can be adapted. Pass the trainable part of the model and "
                "close the loss over the rest (equinox.partition, nnx.split)."
            )


def _concrete(inner: PyTree) -> PyTree:
    """Hyper-parameters of some value, also where `init` is traced and theirs is not known."""
    return jax.tree.map(lambda x: np.full(np.shape(x), 0.1, x.dtype), inner)


def _check_differentiable(transform: optax.GradientTransformation, params: Params) -> None:
    """Differentiates one update at a gradient in which one entry of every array is zero."""

    def gradient(leaf):
        grad = np.ones(np.shape(leaf), jnp.result_type(leaf))
        if grad.size > 1:
            grad.flat[0] = 0.0
        return jnp.asarray(grad)

    with jax.ensure_compile_time_eval():
        ones = jax.tree.map(lambda leaf: jnp.ones(jnp.shape(leaf), jnp.result_type(leaf)), params)
        grads = jax.tree.map(gradient, params)
        _, tangents = jax.jvp(
            lambda g: transform.update(g, transform.init(ones), ones)[0], (grads,), (ones,)
        )
        finite = all(bool(jnp.all(jnp.isfinite(t))) for t in jax.tree.leaves(tangents))
    if not finite:
        raise ValueError(NOT_DIFFERENTIABLE)
