"""How the best state of a run is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from metajax.base import Key, MetaState, Metrics, check_function
from metajax.tasks import TaskDistribution, as_tasks
from metajax.train.identity import digest
from metajax.train.processes import on_mesh, replicated
from metajax.train.writers import flatten, named


class Validation(NamedTuple):
    """How the best state is chosen.

    Attributes:
      tasks: meta-validation tasks, passed to `measure` as an argument so that their data are not
        compiled into the program.
      measure: `(state, tasks, rng) -> dict of scalars`; compiled by `fit`. The `rng` is the same
        every time, so that all states are measured on the same tasks.
      metric: the entry of that dict to choose by.
      mode: `"max"` if more is better, `"min"` if less is.
    """

    tasks: TaskDistribution
    measure: Callable[[MetaState, Any, Key], Metrics]
    metric: str
    mode: str = "max"


class Validator(NamedTuple):
    """A validation that is ready to measure states.

    Attributes:
      validation: its tasks are on the devices of the run.
      measure: its compiled function.
      rng: the same key for every state.
    """

    validation: Validation
    measure: Any
    rng: Key

    def metrics(self, state: MetaState) -> dict[str, Any]:
        """Measures a state."""
        return flatten(self.measure(state, self.validation.tasks, self.rng))

    def digest(self, state: MetaState) -> str:
        """The digest of the program for states of these shapes, the tasks and the metric."""
        tasks, metric, mode = self.validation.tasks, self.validation.metric, self.validation.mode
        program = self.measure.lower(state, tasks, self.rng).as_text()
        return digest(program, tasks, f"{mode} {metric}")


def make_validator(
    validation: Validation | None, state: MetaState, rng: Key, mesh: Mesh | None = None
) -> Validator | None:
    """Compiles a validation; `None` makes `None`.

    Args:
      validation: from `check_validation`.
      state: a state of the run, for its shapes.
      rng: the key for every state.
      mesh: the devices of the run.

    Raises:
      ValueError: if `measure` does not return its metric as a scalar.
    """
    if validation is None:
        return None
    validation = validation._replace(tasks=on_mesh(mesh, validation.tasks))
    everywhere = None if mesh is None else replicated(mesh)
    measure = jax.jit(validation.measure, out_shardings=everywhere)
    check_measured(validation, jax.eval_shape(measure, state, validation.tasks, rng))
    return Validator(validation, measure, rng)


def check_validation(validation: Any) -> Validation | None:
    """Returns a validation whose tasks `jit` takes, or `None`.

    Raises:
      ValueError: if `validation` is neither a valid `Validation` nor `None`.
    """
    if validation is None:
        return None
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
    """Raises `ValueError` unless the abstract result of `measure` has the metric as a scalar."""
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
    if jax.numpy.issubdtype(found[metric].dtype, jax.numpy.complexfloating):
        raise ValueError(f"Validation.metric {metric!r} is complex, which has no best value.")
    if found[metric].shape != ():
        raise ValueError(
            f"Validation.metric {metric!r} must be a scalar, but measure returned shape "
            f"{found[metric].shape}: average it, or choose one entry."
        )


def better(validation: Validation, new: dict[str, Any], old: dict[str, Any]) -> bool:
    """Whether the new metrics are better than the old ones, or the first; equal ones are not."""
    if not old:
        return True
    # NaN is worse than any number.
    if np.isnan(old[validation.metric]):
        return not np.isnan(new[validation.metric])
    sign = 1 if validation.mode == "max" else -1
    return sign * new[validation.metric] > sign * old[validation.metric]
