"""A run ends where its numbers do."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.base import MetaLearner, MetaState, Metrics
from metajax.checks import check_differentiable

# The metrics that say at which meta-step a run went wrong, and what an error calls them.
JUDGED = {"objective": "objective", "meta_gradient_norm": "norm of the meta-gradient"}


class NonFiniteError(FloatingPointError):
    """A meta-update produced a value that is not finite."""


def check_finite(
    learner: MetaLearner, metrics: Metrics, state: MetaState, first: int, last: int
) -> None:
    """Raises `NonFiniteError` for the first meta-step of a call that went wrong.

    The metrics are from before each update, so the last update shows in the state alone, and
    without the metrics that are judged so does every other.

    Args:
      learner: whose inner optimizer is looked at where the meta-gradient alone is not finite.
      metrics: of the meta-steps from `first` on, leaves `[last - first, ...]`.
      state: after `last` meta-steps.
    """
    judged = {
        name: np.asarray(metrics[name]).reshape(last - first, -1)
        for name in JUDGED
        if name in metrics
    }
    finite = np.ones(last - first, bool)
    for values in judged.values():
        finite &= np.isfinite(values).all(axis=1)
    if not finite.all():
        index = int(np.argmin(finite))
        at = f"meta-step {first + index + 1}"
        found = ", ".join(f"{JUDGED[name]} {_shown(x[index])}" for name, x in judged.items())
        if "objective" in judged and np.isfinite(judged["objective"][index]).all():
            remedy = _of_derivative(learner, state)
        else:
            remedy = "Lower the inner or outer learning rate or clip the meta-gradient (optax.clip)"
    elif all(_all_finite((state.meta_params, state.inner_state))):
        return
    elif len(judged) == len(JUDGED):
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


def _of_derivative(learner: MetaLearner, state: MetaState) -> str:
    """What is to be done where the objective is finite and its derivative is not."""
    optimizer = getattr(getattr(learner, "inner", None), "optimizer", None)
    if optimizer is not None:
        try:
            check_differentiable(optimizer, state.meta_params.params)
        except ValueError as error:
            text = str(error).rstrip(".")
            return text[0].upper() + text[1:]
    return "A derivative of the loss is not finite where the loss is, as that of a root at zero"


def _shown(values: Any) -> str:
    return " ".join(map(str, values))


@jax.jit
def _all_finite(tree: Any) -> list[Any]:
    return [
        jnp.isfinite(x).all() for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)
    ]
