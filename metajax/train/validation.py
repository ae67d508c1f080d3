"""How the best state of a run is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from metajax.base import Key, MetaState, Metrics, check_function
from metajax.tasks import TaskDistribution, as_tasks
from metajax.train.writers import named


class Validation(NamedTuple):
    """How the best state is chosen.

    Attributes:
      tasks: meta-validation tasks, passed to `measure` as an argument so that their data are not
        compiled into the program.
      measure: `(state, tasks, rng) -> dict of scalars`; compiled by `fit`. The `rng` is the same
        every time: all states are measured on the same tasks.
      metric: the entry of that dict that decides.
      mode: whether the best is the `"max"` or the `"min"`.
    """

    tasks: TaskDistribution
    measure: Callable[[MetaState, Any, Key], Metrics]
    metric: str
    mode: str = "max"


def check_validation(validation: Any) -> Validation:
    """Returns a validation whose tasks `jit` takes; raises `ValueError` for anything else."""
    if not isinstance(validation, Validation):
        raise ValueError(
            "fit: validation must be a train.Validation(tasks, measure, metric, mode), got "
            f"{type(validation).__name__}."
        )
    check_function("Validation.measure", validation.measure, "state, tasks, rng")
    if validation.mode not in ("max", "min"):
        raise ValueError(f'Validation.mode must be "max" or "min", got {validation.mode!r}.')
    tasks: Any = validation.tasks
    if jax.tree_util.all_leaves([tasks]) and not isinstance(tasks, jax.Array | np.ndarray):
        tasks = as_tasks(tasks)
    return validation._replace(tasks=tasks)


def check_measured(validation: Validation, measured: Any) -> None:
    """Raises `ValueError` unless what `measure` returns, abstractly, holds the metric."""
    metric = validation.metric
    if not isinstance(measured, Mapping):
        raise ValueError(
            f"Validation.measure must return a dict of scalars, {metric!r} among them, but it "
            "returned no dict."
        )
    found = named(measured)
    if metric not in found:
        raise ValueError(
            f"Validation.metric is {metric!r}, but measure returned only "
            f"{', '.join(map(repr, found)) or 'an empty dict'}."
        )
    if found[metric].shape != ():
        raise ValueError(
            f"Validation.metric {metric!r} must be a scalar, but measure returned shape "
            f"{found[metric].shape}: average it, or choose one entry."
        )


def better(validation: Validation, new: dict[str, Any], old: dict[str, Any]) -> bool:
    """Whether new metrics beat the old ones, if there are any; equal ones do not."""
    if not old:
        return True
    # Not a number is worse than any number.
    if np.isnan(old[validation.metric]):
        return not np.isnan(new[validation.metric])
    sign = 1 if validation.mode == "max" else -1
    return sign * new[validation.metric] > sign * old[validation.metric]
