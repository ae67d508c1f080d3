"""Stops a run at the first meta-step whose numbers are not finite."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.base import MetaLearner, MetaState, Metrics
from metajax.checks import check_differentiable

# The metrics that are checked, and their names in an error.
CHECKED = {"objective": "objective", "meta_gradient_norm": "norm of the meta-gradient"}


class NonFiniteError(FloatingPointError):
    """A meta-update produced a value that is not finite."""


def check_finite(
    learner: MetaLearner, metrics: Metrics, state: MetaState, first: int, last: int
) -> None:
    """Raises `NonFiniteError` for the first meta-step of a call that is not finite.

    Metrics are computed before each update, so they miss the last update; the state shows it. If
    the learner reports no `objective` or `meta_gradient_norm`, the error names the whole call.

    Args:
      learner: its inner optimizer is examined if only the meta-gradient is not finite.
      metrics: of the meta-steps after `first`, leaves `[last - first, ...]`.
      state: after `last` meta-steps.
    """
    checked = {
        name: np.asarray(metrics[name]).reshape(last - first, -1)
        for name in CHECKED
        if name in metrics
    }
    finite = np.ones(last - first, bool)
    for values in checked.values():
        finite &= np.isfinite(values).all(axis=1)
    if not finite.all():
        index = int(np.argmin(finite))
        at = f"meta-step {first + index + 1}"
        found = ", ".join(f"{CHECKED[name]} {_shown(x[index])}" for name, x in checked.items())
        if "objective" in checked and np.isfinite(checked["objective"][index]).all():
            remedy = _derivative_remedy(learner, state)
        else:
            remedy = "Lower the inner or outer learning rate or clip the meta-gradient (optax.clip)"
    elif all(_all_finite((state.meta_params, state.inner_state))):
        return
    elif len(checked) == len(CHECKED):
        at, found = f"meta-step {last}", "the update is not finite, though objective and"
        found += " meta-gradient are"
        remedy = "Lower the outer learning rate"
    else:
        at, found = f"meta-steps {first + 1} to {last}", "an update is not finite"
        remedy = "Lower the inner or outer learning rate"
    raise NonFiniteError(
        f"{at}: {found}. {remedy}; JAX_DEBUG_NANS=True shows where it arises. The last good "
        "checkpoint is kept."
    )


def _derivative_remedy(learner: MetaLearner, state: MetaState) -> str:
    """The remedy for a meta-gradient that is not finite though the objective is."""
    optimizer = getattr(getattr(learner, "inner", None), "optimizer", None)
    if optimizer is not None:
        try:
            check_differentiable(optimizer, state.meta_params.params)
        except ValueError as error:
            text = str(error).rstrip(".")
            return text[0].upper() + text[1:]
    return "The loss is finite but its derivative is not, like that of a square root at zero"


def _shown(values: Any) -> str:
    return " ".join(map(str, values))


@jax.jit
def _all_finite(tree: Any) -> list[Any]:
    return [
        jnp.isfinite(x).all() for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)
    ]
