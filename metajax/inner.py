"""Adaptation to one task: the only inner loop of the library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metajax.base import (
    Adapt,
    AdaptInfo,
    Array,
    Batch,
    Episode,
    Key,
    LossFn,
    MetaParams,
    Params,
    PyTree,
    Stateful,
    as_arrays,
    check_function,
    check_integer,
    join_inner,
    leaf_types,
    num_numbers,
    same_structure,
    split_inner,
    split_key,
    split_state,
    strongly_typed,
)
from metajax.batches import Batches, full_batch
from metajax.gradients import MetaGradient, second_order, without_derivative
from metajax.optimizers import (
    LearnedOptimizer,
    UpdateReads,
    as_learned,
    check_optimizer,
    merged,
    only,
    other_than,
    update_reads,
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
      optimizer: any optax transformation, or a `LearnedOptimizer`. Its update is told the loss's
        value as `value`, `grad` and `value_fn`: `optax.polyak_sgd` works, and `optax.lbfgs` where
        the meta-gradient does not cross it. One that divides by a norm or root that can be zero has
        no derivative there: for second order `metajax.check_differentiable` tells.
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
      ValueError: for arguments that do not fit together; by `init`, for parameters that cannot be
        adapted; when `apply` is traced, for an optimizer that the meta-gradient cannot cross, for
        a loss that does not return `(scalar, metrics)` and for the state of another inner loop.

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
    _check_arguments(loss, num_steps, meta_gradient, proximal, batches, carry)
    inner_optimizer = as_learned(optimizer)
    moves = inner_optimizer.moves

    def init(params: Params) -> tuple[PyTree, PyTree]:
        params, model = strongly_typed(_checked(params))
        inner = inner_optimizer.init(params)
        _check_learned(inner, meta_gradient)
        inner = strongly_typed(inner)
        opt_state = inner_optimizer.make(inner).init(only(params, moves)) if carry else ()
        return inner, join_inner(strongly_typed(opt_state), model)

    def apply(
        meta_params: MetaParams,
        support: Batch,
        rng: Key,
        *,
        inner_state: PyTree = (),
        probe: Callable[[Params, Array | int], PyTree] | None = None,
    ) -> tuple[Params, AdaptInfo]:
        if not isinstance(meta_params, MetaParams):
            raise ValueError(
                "adaptation starts from metajax.MetaParams(params), such as state.meta_params, got "
                f"{type(meta_params).__name__}."
            )
        params, model = split_state(meta_params.params)
        params, inner = strongly_typed((params, meta_params.inner))
        carried, carried_model = split_inner(inner_state)
        _check_same_learned(inner, jax.eval_shape(inner_optimizer.init, params))
        if isinstance(support, Episode):
            raise ValueError("adaptation takes the support of one task, episode.support.")
        support = as_arrays("support", support)
        if num_steps and jax.tree.leaves(support) and not num_numbers(support):
            raise ValueError("the support has no examples to adapt on: give each task some shots.")
        batch_rng, loss_rng = split_key(rng)
        batch_at = batches(support, num_steps, batch_rng)

        # The state that flows from task to task is newer than the one that training started from.
        model = model if same_structure(carried_model, ()) else carried_model
        stateful = not same_structure(model, ())
        model = jax.lax.stop_gradient(strongly_typed(model))
        initial, frozen = only(params, moves), only(params, other_than(moves))

        def whole(moving, model):
            params = merged(moving, frozen)
            # Made anew: the variables of NNX can be written only in the trace that made them.
            return Stateful(params, jax.tree.map(lambda x: x, model)) if stateful else params

        def penalized(moving, model, batch, rng):
            value, aux, model = check_loss(loss(whole(moving, model), batch, rng), model)
            pull = 0 if _is_zero(proximal) else 0.5 * proximal * _distance(moving, initial)
            return value + pull, (value, aux, jax.lax.stop_gradient(model))

        transform = inner_optimizer.make(inner)
        check_optimizer("what LearnedOptimizer.make returns", transform)
        transform = optax.with_extra_args_support(transform)

        def update(grads, opt_state, moving, value, *operands):
            return transform.update(
                grads,
                opt_state,
                moving,
                value=value,
                grad=grads,
                value_fn=lambda moving: penalized(moving, *operands)[0],
            )

        def operands(model, step):
            return model, batch_at(step), jax.random.fold_in(loss_rng, step)

        if carry is None and jax.tree.leaves(carried):
            raise ValueError(
                "inner_loop: got a carried inner_state, but this adaptation was built with "
                'carry=None. Build it with the carry of training ("mean" or "serial").'
            )
        opt_state = transform.init(initial)
        if carry and not same_structure(carried, ()):
            if not same_structure(carried, opt_state):
                raise ValueError(
                    "inner_loop: the carried inner_state is that of another inner optimizer, with "
                    f"the structure {jax.tree.structure(carried)}. Adapt with the optimizer "
                    "of training."
                )
            opt_state = carried

        gradient = meta_gradient.gradient(penalized)
        if num_steps:
            first = operands(model, 0)
            (value, _), _ = jax.eval_shape(gradient, initial, *first)
            reads = update_reads(
                lambda *args: update(*args, *first), initial, opt_state, jnp.zeros((), value.dtype)
            )
            _check_update(reads, meta_gradient)
            if reads.searches:
                update = without_derivative(update)

        @meta_gradient.step
        def take_step(moving, opt_state, model, step):
            given = operands(model, step)
            (value, (unpenalized, aux, model)), grads = gradient(moving, *given)
            updates, opt_state = update(grads, opt_state, moving, value, *given)
            return optax.apply_updates(moving, updates), opt_state, model, (unpenalized, aux)

        def body(state, step):
            moving, _, model = state
            probed = probe(whole(moving, model), step) if probe else ()
            *state, told = take_step(*state, step)
            return tuple(state), (*told, probed)

        (moving, opt_state, model), (values, auxes, probed) = _loop(
            body, (initial, opt_state, model), num_steps, unroll
        )

        def optimality(moving):
            return jax.grad(penalized, has_aux=True)(moving, *operands(model, num_steps - 1))[0]

        adapted = whole(meta_gradient.solution(moving, optimality), model)
        if probe:
            last = probe(adapted, num_steps)
            probed = jax.tree.map(
                lambda xs, x: jnp.concatenate([xs, jnp.asarray(x)[None]]), probed, last
            )
        ended = join_inner(opt_state if carry else (), model)
        return adapted, AdaptInfo(values, auxes, probed, ended)

    return Adapt(
        init,
        apply,
        carry,
        differentiates_steps=not meta_gradient.implicit,
        forward=meta_gradient.forward,
        optimizer=inner_optimizer if num_steps and meta_gradient.crosses_optimizer else None,
    )


def _loop(body, state, num_steps: int, unroll: int):
    """A scan over the inner steps, but for the numbers that need none."""
    if num_steps == 0:
        # Not a scan of no iterations, which does not run without `jit`.
        told = jax.eval_shape(body, state, jnp.zeros((), jnp.int32))[1]
        return state, jax.tree.map(lambda x: jnp.zeros((0, *x.shape), x.dtype), told)
    steps = jnp.arange(num_steps)
    if num_steps == 1:
        # In a scan each task of a `vmap` would start from a copy of its own.
        state, told = body(state, steps[0])
        return state, jax.tree.map(lambda x: jnp.asarray(x)[None], told)
    return jax.lax.scan(body, state, steps, unroll=unroll)


def check_loss(result: tuple[Any, ...], model: PyTree = ()) -> tuple[Array, PyTree, PyTree]:
    """A loss's value, metrics and new state as arrays, or what is wrong with them.

    Args:
      result: what the loss returned.
      model: the state that it was given, which is the new one where it returned none.
    """
    if not (isinstance(result, tuple) and len(result) in (2, 3)):
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
    written = strongly_typed(result[2]) if len(result) == 3 else model
    given, returned = leaf_types(model), leaf_types(written)
    if given != returned:
        raise ValueError(
            f"the loss was given the state {given or 'none'} and returned {returned or 'none'}: "
            "start from metajax.Stateful(params, state), and return a state of the same structure, "
            "shapes and types."
        )
    return value, as_arrays("the loss' metrics", result[1]), written


def _distance(a: Params, b: Params) -> Array | float:
    """The squared distance."""
    return sum(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum((x - y) ** 2), a, b)), start=0.0)


def _check_arguments(loss, num_steps, meta_gradient, proximal, batches, carry) -> None:
    check_function("inner_loop: loss", loss, "params, batch, rng")
    check_function(
        "inner_loop: batches",
        batches,
        "support, num_steps, rng",
        " such as full_batch() or cycle(size) (mind the parentheses)",
    )
    if not isinstance(meta_gradient, MetaGradient):
        raise ValueError(
            "inner_loop: meta_gradient must be second_order(), mixed_mode(), first_order() or "
            f"implicit() (mind the parentheses), got {meta_gradient!r}."
        )
    known = isinstance(proximal, int | float | np.number) and not isinstance(proximal, bool)
    traced = isinstance(proximal, jax.Array) and proximal.ndim == 0
    if not (0 <= proximal < np.inf if known else traced):
        raise ValueError(
            f"inner_loop: proximal must be a finite number that is not negative, got {proximal!r}."
        )
    if carry not in CARRIES:
        raise ValueError(f"inner_loop: carry must be one of {CARRIES}, got {carry!r}.")
    if meta_gradient.implicit:
        wrong = {
            "proximal > 0": _is_zero(proximal),
            "batches=full_batch()": batches is not full_batch(),
            "at least one inner step": num_steps == 0,
        }
        if any(wrong.values()):
            raise ValueError(
                "inner_loop: implicit() differentiates the minimizer of a fixed, proximally "
                "regularized problem, so it requires "
                + " and ".join(need for need, missing in wrong.items() if missing)
                + "."
            )


def _is_zero(proximal: Any) -> bool:
    """Whether a number is known to be zero; what is traced is not looked at."""
    return isinstance(proximal, int | float | np.number) and proximal == 0


def _checked(params: Params) -> tuple[Params, PyTree]:
    """Parameters that can be adapted, and the model's state."""
    params, model = split_state(params)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError("there is nothing to adapt: params has no arrays.")
    for path, leaf in leaves:
        dtype = getattr(leaf, "dtype", None)
        if not isinstance(leaf, float) and (
            dtype is None or not jnp.issubdtype(dtype, jnp.floating)
        ):
            raise ValueError(
                f"params{jax.tree_util.keystr(path)} is {dtype or type(leaf).__name__}, but only "
                "floating-point arrays can be adapted. Pass the trainable part of the model and "
                "close the loss over the rest (equinox.partition, nnx.split)."
            )
    as_arrays("params", params)
    # A module's arrays that are one come apart as leaves of a tree.
    classes = {(each.__module__.rpartition(".")[0], each.__name__) for each in type(params).__mro__}
    if classes & {("flax.nnx", "Module"), ("flax.nnx", "Pytree"), ("flax.nnx", "Object")}:
        raise ValueError(
            f"params is the NNX module {type(params).__name__}, whose shared weights and batch "
            "statistics get lost as leaves of a tree: use nnx.split, adapt the nnx.Param part and "
            "nnx.merge it in the loss; what the model writes goes into metajax.Stateful."
        )
    if not isinstance(params, dict | list | tuple):
        names: dict[int, str] = {}
        for path, leaf in leaves:
            name = jax.tree_util.keystr(path)
            if (other := names.setdefault(id(leaf), name)) != name:
                raise ValueError(
                    f"params{other} and params{name} of {type(params).__name__} are one array, "
                    "but would adapt apart: share them by the library's own means "
                    "(equinox.nn.Shared), or copy one (jnp.copy)."
                )
    return params, model


def _check_update(reads: UpdateReads, meta_gradient: MetaGradient) -> None:
    if reads.searches and meta_gradient.crosses_optimizer:
        raise ValueError(
            "inner_loop: reverse mode cannot cross the line search of the inner optimizer (such as "
            "optax.lbfgs). Adapt with first_order() or implicit(), which do not differentiate it."
        )
    if reads.value and not meta_gradient.value:
        raise ValueError(
            "inner_loop: the inner optimizer uses the loss's value, which carries no derivative "
            "with mixed_mode(). Use second_order(remat=True)."
        )
    if meta_gradient.implicit and reads.ignored:
        raise ValueError(
            "inner_loop: implicit() differentiates the minimizer over all that adapts, but the "
            f"inner optimizer leaves params{reads.ignored[0]} where it is. Say what adapts with "
            "metajax.adapting, or use second_order() or first_order()."
        )
    if meta_gradient.implicit and reads.params and not reads.searches:
        raise ValueError(
            "inner_loop: implicit() differentiates the minimizer of loss and proximal term, but "
            "the inner optimizer's update depends on the parameters themselves, as weight decay "
            "does, so that it ends elsewhere. Put the decay into the loss, or use second_order()."
        )


def _check_learned(inner: PyTree, meta_gradient: MetaGradient) -> None:
    if meta_gradient.implicit and jax.tree.leaves(inner):
        raise ValueError(
            "inner_loop: implicit() differentiates the minimizer, to which the inner optimizer's "
            "hyper-parameters are nothing: it requires one without learned hyper-parameters."
        )
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
