"""What an inner loop is refused for: arguments, parameters, losses and updates."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.base import (
    Array,
    Params,
    PyTree,
    as_arrays,
    check_function,
    leaf_shapes,
    named_leaves,
    split_state,
    strongly_typed,
)
from metajax.batches import full_batch
from metajax.gradients import MetaGradient
from metajax.optimizers import UpdateReads

CARRIES = (None, "mean", "serial")


def check_arguments(loss, meta_gradient, proximal, batches, carry) -> None:
    """Raises `ValueError` for what `inner_loop` cannot be built of."""
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
    if meta_gradient.implicit and (is_zero(proximal) or batches is not full_batch()):
        raise ValueError(
            "inner_loop: implicit() differentiates the minimizer of one fixed problem, so it "
            "requires proximal > 0 and batches=full_batch()."
        )


def is_zero(proximal: Any) -> bool:
    """Whether a number is known to be zero; what is traced is not looked at."""
    return isinstance(proximal, int | float | np.number) and proximal == 0


def adaptable(params: Params) -> tuple[Params, PyTree]:
    """Parameters that can be adapted, and the model's state."""
    params, model = split_state(params)
    leaves = named_leaves(params, "params")
    if not leaves:
        raise ValueError("there is nothing to adapt: params has no arrays.")
    for name, leaf in leaves.items():
        dtype = getattr(leaf, "dtype", None)
        if not isinstance(leaf, float) and (
            dtype is None or not jnp.issubdtype(dtype, jnp.floating)
        ):
            raise ValueError(
                f"{name} is {dtype or type(leaf).__name__}, but only "
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
        for name, leaf in leaves.items():
            if (other := names.setdefault(id(leaf), name)) != name:
                raise ValueError(
                    f"{other} and {name} of {type(params).__name__} are one array, "
                    "but would adapt apart: share them by the library's own means "
                    "(equinox.nn.Shared), or copy one (jnp.copy)."
                )
    return params, model


def check_update(reads: UpdateReads, meta_gradient: MetaGradient) -> None:
    """Raises `ValueError` for an update that the meta-gradient cannot cross."""
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
            "metajax.adapt_only, or use second_order() or first_order()."
        )
    if meta_gradient.implicit and reads.params and not reads.searches:
        raise ValueError(
            "inner_loop: implicit() differentiates the minimizer of loss and proximal term, but "
            "the inner optimizer's update depends on the parameters themselves, as weight decay "
            "does, so that it ends elsewhere. Put the decay into the loss, or use second_order()."
        )


def check_learned(inner: PyTree, meta_gradient: MetaGradient) -> None:
    """Raises `ValueError` for hyper-parameters that cannot be learned."""
    if meta_gradient.implicit and jax.tree.leaves(inner):
        raise ValueError(
            "inner_loop: implicit() differentiates the minimizer, to which the inner optimizer's "
            "hyper-parameters are nothing: it requires one without learned hyper-parameters."
        )
    for name, leaf in named_leaves(inner, "inner").items():
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"the learned hyper-parameter {name} is {dtype}, but "
                "only floating-point ones can be learned: let LearnedOptimizer.init return a "
                "float, or close `make` over it."
            )


def check_same_learned(inner: PyTree, expected: PyTree) -> None:
    """Raises `ValueError` unless the state's learned inner parameters are those of this loop."""
    there, here = leaf_shapes(inner), leaf_shapes(expected)
    for path in sorted({*there, *here}):
        if there.get(path) != here.get(path):
            raise ValueError(
                f"inner_loop: the learned inner{path} is {there.get(path, 'absent')} in the state, "
                f"{here.get(path, 'absent')} here. Use the inner optimizer that the state was made "
                "with; learned_per_step_sizes repeats its last size in further steps."
            )


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
    if jnp.shape(value) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            "the loss must return a floating-point scalar, such as jnp.mean over the examples; it "
            f"returned {value.dtype}{list(value.shape)}."
        )
    written = strongly_typed(result[2]) if len(result) == 3 else model
    given, returned = (
        {name: f"{jnp.result_type(x)}{list(x.shape)}" for name, x in named_leaves(state).items()}
        for state in (model, written)
    )
    if given != returned:
        raise ValueError(
            f"the loss was given the state {given or 'none'} and returned {returned or 'none'}: "
            "start from metajax.Stateful(params, state), and return a state of the same structure, "
            "shapes and types."
        )
    return value, as_arrays("the loss' metrics", result[1]), written
