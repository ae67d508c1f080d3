"""Adaptation to one task: the only inner loop of the library."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metajax.base import (
    Adapt,
    AdaptInfo,
    Array,
    Batch,
    Key,
    LossFn,
    MetaParams,
    Params,
    PyTree,
    as_arrays,
    check_function,
    check_integer,
    same_structure,
    strongly_typed,
)
from metajax.batches import Batches, full_batch
from metajax.gradients import MetaGradient, second_order
from metajax.optimizers import (
    TRIED_STEPS,
    LearnedOptimizer,
    check_adapts_all,
    check_differentiable,
    check_update,
)

CARRIES = (None, "mean", "serial")


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
      optimizer: any optax transformation whose update needs gradients, state and parameters
        alone, or a `LearnedOptimizer`. One that divides by the norm of all gradients, such as
        `optax.clip_by_global_norm`, has no derivative where they are all zero: for second order,
        every task needs some gradient.
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
      ValueError: for arguments that do not fit together; by `init`, for an optimizer that the
        meta-gradient cannot cross; when `apply` is traced, for a loss that does not return
        `(scalar, metrics)` and for the state of another inner loop.

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
    num_steps = check_integer("inner_loop: num_steps is static and", num_steps, minimum=0)
    unroll = check_integer("inner_loop: unroll", unroll)
    _check_arguments(loss, optimizer, num_steps, meta_gradient, proximal, batches, carry)

    def learned(params: Params) -> PyTree:
        return optimizer.init(params) if isinstance(optimizer, LearnedOptimizer) else ()

    def make(inner: PyTree) -> optax.GradientTransformation:
        return optimizer.make(inner) if isinstance(optimizer, LearnedOptimizer) else optimizer

    def init(params: Params) -> tuple[PyTree, PyTree]:
        _check_params(params)
        params = strongly_typed(params)
        inner = learned(params)
        _check_learned(inner)
        inner = strongly_typed(inner)
        if num_steps:
            transform, tried = make(_concrete(inner)), min(num_steps, TRIED_STEPS)
            check_update("inner_loop: the inner", transform, params)
            if meta_gradient.crosses_optimizer:
                check_differentiable(transform, params, tried)
            if meta_gradient.implicit:
                check_adapts_all(transform, params, tried)
        return inner, strongly_typed(make(inner).init(params) if carry else ())

    def apply(
        meta_params: MetaParams,
        support: Batch,
        rng: Key,
        *,
        inner_state: PyTree = (),
        probe: Callable[[Params, Array | int], PyTree] | None = None,
    ) -> tuple[Params, AdaptInfo]:
        initial, inner = strongly_typed(meta_params)
        _check_same_learned(inner, jax.eval_shape(learned, initial))
        support = as_arrays("support", support)
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
        opt_state = transform.init(initial)
        if carry and not same_structure(inner_state, ()):
            if not same_structure(inner_state, opt_state):
                raise ValueError(
                    "inner_loop: the carried inner_state is that of another inner optimizer, with "
                    f"the structure {jax.tree.structure(inner_state)}. Adapt with the optimizer "
                    "of training."
                )
            opt_state = inner_state
        steps = jnp.arange(num_steps)
        if num_steps == 1:
            # In a scan each task of a `vmap` would start from a copy of its own.
            (params, opt_state), once = body((initial, opt_state), steps[0])
            values, auxes, probed = jax.tree.map(lambda x: jnp.asarray(x)[None], once)
        else:
            (params, opt_state), (values, auxes, probed) = jax.lax.scan(
                body, (initial, opt_state), steps, unroll=unroll
            )

        def optimality(params):
            return jax.grad(penalized, has_aux=True)(params, *operands(num_steps - 1))[0]

        adapted = meta_gradient.solution(params, optimality)
        if probe:
            last = probe(adapted, num_steps)
            probed = jax.tree.map(
                lambda xs, x: jnp.concatenate([xs, jnp.asarray(x)[None]]), probed, last
            )
        return adapted, AdaptInfo(values, auxes, probed, opt_state if carry else ())

    return Adapt(
        init,
        apply,
        carry,
        differentiates_steps=not meta_gradient.implicit,
        forward=meta_gradient.forward,
    )


def check_loss(result: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
    """Passes on what a loss returned, as arrays, or says what is wrong with it."""
    if not (isinstance(result, tuple) and len(result) == 2):
        raise ValueError(
            "the loss must return (scalar, metrics), for example `return value, {}`; it returned "
            f"{type(result).__name__}."
        )
    value = as_arrays("the loss' value", result[0])
    if jnp.shape(value) != ():
        raise ValueError(
            f"the loss must return a scalar, it returned shape {jnp.shape(value)}: average "
            "over the examples, for example with jnp.mean."
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"the loss must return a floating-point scalar, it returned {value.dtype}."
        )
    return value, as_arrays("the loss' metrics", result[1])


def _squared_distance(a: Params, b: Params) -> Array | float:
    return sum(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum((x - y) ** 2), a, b)), start=0.0)


def _check_arguments(loss, optimizer, num_steps, meta_gradient, proximal, batches, carry) -> None:
    check_function("inner_loop: loss", loss, "params, batch, rng")
    check_function(
        "inner_loop: batches",
        batches,
        "support, num_steps, rng",
        " such as full_batch() or cycle(size) (mind the parentheses)",
    )
    if not isinstance(optimizer, LearnedOptimizer) and not (
        hasattr(optimizer, "init") and hasattr(optimizer, "update")
    ):
        raise ValueError(
            "inner_loop: the optimizer must be an optax transformation such as optax.sgd(0.01), "
            f"or a LearnedOptimizer; got {optimizer!r}."
        )
    if not isinstance(meta_gradient, MetaGradient):
        raise ValueError(
            "inner_loop: meta_gradient must be second_order(), mixed_mode(), first_order() or "
            f"implicit() (mind the parentheses), got {meta_gradient!r}."
        )
    number = isinstance(proximal, int | float | np.number) and not isinstance(proximal, bool)
    if not number or not 0 <= proximal < np.inf:
        raise ValueError(
            f"inner_loop: proximal must be a finite number that is not negative, got {proximal!r}."
        )
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
    if not jax.tree.leaves(params):
        raise ValueError("there is nothing to adapt: params has no arrays.")
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


def _check_learned(inner: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(inner):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"the learned hyper-parameter inner{jax.tree_util.keystr(path)} is {dtype}, but "
                "only floating-point ones can be learned: let LearnedOptimizer.init return a "
                "float, or close `make` over it."
            )


def _check_same_learned(inner: PyTree, expected: PyTree) -> None:
    if same_structure(inner, expected):
        for (path, x), y in zip(
            jax.tree_util.tree_leaves_with_path(inner), jax.tree.leaves(expected), strict=True
        ):
            if jnp.shape(x) != jnp.shape(y):
                raise ValueError(
                    f"inner_loop: the learned inner{jax.tree_util.keystr(path)} of the state has "
                    f"shape {jnp.shape(x)}, this inner loop's LearnedOptimizer makes "
                    f"{jnp.shape(y)}. Use the inner optimizer with which the state was made; "
                    "learned_per_step_sizes repeats its last size in further steps."
                )
        return
    if not jax.tree.leaves(expected):
        problem = (
            "the state holds learned inner parameters (inner), but this inner loop's optimizer has "
            "none, so they would be ignored"
        )
    elif not jax.tree.leaves(inner):
        problem = (
            "this inner loop's LearnedOptimizer has learned inner parameters, but the state holds "
            "none (inner is empty)"
        )
    else:
        problem = (
            "the learned inner parameters of the state are those of another LearnedOptimizer: "
            f"{jax.tree.structure(inner)} instead of {jax.tree.structure(expected)}"
        )
    raise ValueError(
        f"inner_loop: {problem}. Use the inner optimizer with which the state was made."
    )


def _concrete(inner: PyTree) -> PyTree:
    """Hyper-parameters of some value, also where `init` is traced and theirs is not known."""
    return jax.tree.map(lambda x: np.full(np.shape(x), 0.1, x.dtype), inner)
