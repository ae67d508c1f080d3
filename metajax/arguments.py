"""Checks of an inner loop and of objectives: arguments, parameters, losses and updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval

from metajax import base
from metajax.base import Array, Params, PyTree
from metajax.batches import full_batch
from metajax.gradients import MetaGradient, equations

CARRIES = (None, "mean", "serial")


def check_arguments(loss, meta_gradient, proximal, batches, carry) -> None:
    """Raises `ValueError` for wrong arguments of `inner_loop`."""
    base.check_function("inner_loop: loss", loss, "params, batch, rng")
    such = " such as full_batch() or cycle(size) (mind the parentheses)"
    base.check_function("inner_loop: batches", batches, "support, num_steps, rng", such)
    engine = "such as first_order() (mind the parentheses)"
    base.check_kind("inner_loop: meta_gradient", meta_gradient, MetaGradient, engine)
    base.check_number("inner_loop: proximal", proximal, "[0, inf)")
    if carry not in CARRIES:
        raise ValueError(f"inner_loop: carry must be one of {CARRIES}, got {carry!r}.")
    if meta_gradient.implicit and (is_zero(proximal) or batches is not full_batch()):
        raise ValueError(
            "inner_loop: implicit() differentiates the minimizer of one fixed problem, so it "
            "requires proximal > 0 and batches=full_batch()."
        )


def is_zero(proximal: Any) -> bool:
    """Whether a number is known to be zero, which a traced one never is."""
    return isinstance(proximal, int | float | np.number) and proximal == 0


def adaptable(params: Params) -> tuple[Params, PyTree]:
    """The parameters and the model's state, after a check that they can be adapted."""
    params, model = base.split_state(params)
    leaves = base.named_leaves(params, "params")
    if not leaves:
        raise ValueError("there is nothing to adapt: params has no arrays.")
    for name, leaf in leaves.items():
        if not jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.floating):
            raise ValueError(
                f"{name} is {base.describe(leaf)}, but only floating-point arrays can be adapted. "
                "Pass the trainable part of the model and let the loss close over the rest "
                "(equinox.partition, nnx.split)."
            )
    base.as_arrays("params", params)
    check_modules(params)
    return params, model


def check_modules(params: Params) -> None:
    """Raises `ValueError` for a module that holds an array twice, which would become two leaves."""
    modules = base.named_leaves(
        params, "params", is_leaf=lambda x: not isinstance(x, dict | list | tuple)
    )
    names: dict[int, str] = {}
    for root, module in modules.items():
        kind = type(module)
        classes = {(each.__module__.rpartition(".")[0], each.__name__) for each in kind.__mro__}
        if classes & {("flax.nnx", "Module"), ("flax.nnx", "Pytree"), ("flax.nnx", "Object")}:
            raise ValueError(
                f"{root} is the NNX module {kind.__name__}, which loses its shared weights and "
                "batch statistics as a tree of leaves: use nnx.split, adapt the nnx.Param part and "
                "nnx.merge it in the loss. Batch statistics and other state go into "
                "metajax.Stateful."
            )
        for name, leaf in base.named_leaves(module, root).items():
            # A tree of arrays may hold one twice, as initial values.
            if name != root and (other := names.setdefault(id(leaf), name)) != name:
                raise ValueError(
                    f"{other} and {name} of {kind.__name__} are one array, "
                    "but would adapt separately: share them with the model library's own tool "
                    "(equinox.nn.Shared), or copy one (jnp.copy)."
                )


def check_inner_optimizer(
    init: Callable, update: Callable, params: Params, state: PyTree, value: Any, meta: MetaGradient
) -> bool:
    """Raises `ValueError` if the meta-gradient cannot cross an inner optimizer's update.

    The programs of `init(params)` and `update(grads, state, params, value)` are analysed without
    running them.

    Returns:
      Whether the update runs a line search, a loop that reverse mode cannot differentiate.
    """
    try:
        traced, shapes = jax.make_jaxpr(update, return_shape=True)(params, state, params, value)
    except (TypeError, AttributeError) as error:
        raise ValueError(
            "inner_loop: the inner optimizer's update cannot be called with (gradients, state, "
            f"parameters, value=, grad=, value_fn=): {error}. Choose one without other arguments."
        ) from error
    sizes, updated = base.leaf_shapes(params), base.leaf_shapes(shapes[0])
    if sizes != updated:
        raise ValueError(
            f"inner_loop: the inner optimizer's updates have the shapes {updated}, but the "
            f"adapting parameters have {sizes}."
        )
    jaxpr, num = traced.jaxpr, len(sizes)
    searches = any(eqn.primitive.name == "while" for eqn in equations(jaxpr))
    if searches and meta.crosses_optimizer:
        raise ValueError(
            "inner_loop: reverse mode cannot differentiate the line search of an inner optimizer "
            "such as optax.lbfgs. Use first_order() or implicit(), which do not differentiate it."
        )
    if not meta.implicit:
        return searches
    ignored = [path for i, path in enumerate(sizes) if not any(_reads(jaxpr, [i])[:num])]
    if ignored:
        raise ValueError(
            "inner_loop: implicit() assumes that all adapting parameters reach the minimizer, but "
            f"the inner optimizer never moves params{ignored[0]}. Select the parameters that "
            "adapt with metajax.adapt_only, or use second_order() or first_order()."
        )
    started = jax.make_jaxpr(init)(params).jaxpr
    decay = "its update depends on the parameters themselves, as weight decay does"
    memory = "the state of this one holds the parameters that it starts from"
    for cause, reads in (decay, _reads(jaxpr)[-1 - num : -1]), (memory, _reads(started)):
        if any(reads) and not searches:
            raise ValueError(
                "inner_loop: implicit() assumes that the inner optimizer reaches the minimizer of "
                f"loss plus proximal term, but {cause}. Put what pulls the parameters into the "
                "loss, or use second_order()."
            )
    return searches


def _reads(jaxpr: Any, outputs: Sequence[int] | None = None) -> list[bool]:
    """Which inputs of a program some of its outputs, by default all, depend on."""
    wanted = [outputs is None or i in outputs for i in range(len(jaxpr.outvars))]
    return partial_eval.dce_jaxpr(jaxpr, wanted)[1]


def check_learned(inner: PyTree, meta_gradient: MetaGradient) -> None:
    """Raises `ValueError` unless the outer loop can learn the hyper-parameters."""
    if meta_gradient.implicit and jax.tree.leaves(inner):
        raise ValueError(
            "inner_loop: implicit() requires an inner optimizer without learned hyper-parameters, "
            "because the minimizer does not depend on them."
        )
    for name, leaf in base.named_leaves(inner, "inner").items():
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"the learned hyper-parameter {name} is {dtype}, but "
                "only floating-point ones can be learned: let LearnedOptimizer.init return a "
                "float, or close `make` over it."
            )


def check_same_learned(inner: PyTree, expected: PyTree) -> None:
    """Raises `ValueError` unless the state's learned inner parameters fit this inner loop."""
    there, here = base.leaf_shapes(inner), base.leaf_shapes(expected)
    for path in sorted({*there, *here}):
        if there.get(path) != here.get(path):
            raise ValueError(
                f"inner_loop: the learned inner{path} is {there.get(path, 'absent')} in the state, "
                f"{here.get(path, 'absent')} here. Use the inner optimizer of the training; "
                "learned_per_step_sizes repeats its last size in further steps."
            )


def check_loss(result: tuple[Any, ...], model: PyTree = ()) -> tuple[Array, PyTree, PyTree]:
    """Checks the result of a loss and returns its value, its metrics and the new state as arrays.

    Args:
      result: the result, `(value, metrics)` or `(value, metrics, new state)`.
      model: the state before, which is kept if the result has none.
    """
    if not (isinstance(result, tuple) and len(result) in (2, 3)):
        raise ValueError(
            "the loss must return (scalar, metrics), for example `return value, {}`; it returned "
            f"{type(result).__name__}."
        )
    value = base.as_arrays("the loss' value", result[0])
    if jnp.shape(value) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            "the loss must return a floating-point scalar, such as jnp.mean over the examples; it "
            f"returned {value.dtype}{list(value.shape)}."
        )
    written = base.strongly_typed(result[2]) if len(result) == 3 else model
    given, returned = base.leaf_types(model), base.leaf_types(written)
    if given != returned:
        raise ValueError(
            f"the loss was given the state {given or 'none'} and returned {returned or 'none'}: "
            "start from metajax.Stateful(params, state), and return a state with the same "
            "structure, shapes and types."
        )
    return value, base.as_arrays("the loss' metrics", result[1]), written


def check_nothing_learned(meta_params: base.MetaParams) -> None:
    """Raises `ValueError` for learned inner parameters, of which displacements know nothing."""
    if jax.tree.leaves(meta_params.inner):
        raise ValueError(
            "the learned hyper-parameters of the inner optimizer get no gradient from a "
            "displacement of the parameters, and would never be learned. Use query_loss (maml, "
            "fomaml), or an optax optimizer inside."
        )


def check_weights(name: str, weights: Any) -> None:
    """Raises `ValueError` unless the weights are numbers, one for each inner step."""
    if not isinstance(weights, jax.Array | np.ndarray | Sequence):
        raise ValueError(f"{name}: weights must be one number for each inner step, got {weights}.")
    if isinstance(weights, Sequence):
        for weight in weights:
            base.check_number(f"{name}: every weight", weight, "(-inf, inf)")


def check_every_step(name: str, adapt: base.Adapt) -> None:
    """Raises `ValueError` for an inner loop of which only the final parameters have a gradient."""
    if not adapt.differentiates_steps:
        raise ValueError(
            f"{name} needs the gradient of every step, but implicit() has only that of the final "
            "parameters: use second_order(), mixed_mode(), first_order() or query_loss."
        )


def check_query(name: str, query: base.Batch) -> None:
    """Raises `ValueError` for a query set without examples; `()` is that of a task without one."""
    if jax.tree.leaves(query) and not base.num_numbers(query):
        raise ValueError(
            f"{name}: the query set has no examples. Sample some (queries=), or use "
            "displacement(), last_update() or weighted_updates(), which need none."
        )
