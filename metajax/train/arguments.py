"""Checks of the arguments of `fit` and of the results of a learner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from metajax import parallel
from metajax.base import MetaState, Metrics, Params, check_function, check_integer
from metajax.tasks import as_tasks
from metajax.train.task_sources import Stream


def check_counts(
    num_meta_steps: int,
    meta_batch_size: int,
    steps_per_call: int,
    validate_every: int | None = None,
    checkpoint_every: int | None = None,
) -> tuple[int, int, int, int, int]:
    """Returns the counts of `fit` as integers; the last two are ten calls by default.

    Raises:
      ValueError: if a count is not a positive integer, or one of the last two is not a multiple of
        `steps_per_call`.
    """
    steps_per_call = check_integer("fit: steps_per_call", steps_per_call)
    return (
        check_integer("fit: num_meta_steps", num_meta_steps),
        check_integer("fit: meta_batch_size", meta_batch_size),
        steps_per_call,
        _interval("validate_every", validate_every, steps_per_call),
        _interval("checkpoint_every", checkpoint_every, steps_per_call),
    )


def _interval(name: str, every: int | None, steps_per_call: int) -> int:
    every = 10 * steps_per_call if every is None else check_integer(f"fit: {name}", every)
    if every % steps_per_call:
        raise ValueError(
            f"fit: {name}={every} must be a multiple of steps_per_call={steps_per_call}, the "
            "meta-steps of one compiled call."
        )
    return every


def check_learner(learner: Any) -> None:
    """Raises `ValueError` unless `learner` has the three functions of a `MetaLearner`."""
    if not all(callable(getattr(learner, name, None)) for name in ("init", "adapt", "update")):
        raise ValueError(
            "fit: learner must be a metajax.MetaLearner, such as metajax.maml(loss, "
            f"inner_optimizer, outer_optimizer) returns, got {type(learner).__name__}."
        )


def check_mesh(mesh: Any) -> None:
    """Raises `ValueError` unless `mesh` is a mesh for tasks or, in one process, `None`."""
    parallel.check_mesh("fit: mesh", mesh)
    if mesh is None and jax.process_count() > 1:
        raise ValueError(
            f"fit: {jax.process_count()} processes need a mesh over their devices, in the learner "
            "and here: mesh=metajax.task_mesh()."
        )


def check_tasks(tasks: Any) -> Any:
    """Returns tasks that `jit` takes; raises `ValueError` unless they are a distribution."""
    if isinstance(tasks, Stream):
        check_function("fit: open_at of the Stream", tasks.open_at, "step")
        if jax.process_count() > 1:
            raise ValueError(
                "fit: a Stream is for one process, because nothing tells which of its tasks are "
                "whose: use a TaskDistribution with many."
            )
        return tasks
    if not callable(getattr(tasks, "sample", tasks)):
        raise ValueError(
            "fit: tasks must be a distribution, such as metajax.tasks.Sinusoid(), or a function "
            f"rng -> Episode, such as `lambda rng: episode` for a single one, or a "
            f"train.Stream of an iterator's episodes, got "
            f"{type(tasks).__name__}."
        )
    return as_tasks(tasks)


def initial_state(learner: Any, params: Params) -> MetaState:
    """Initializes the learner, in arrays of its own.

    Raises:
      ValueError: if `learner.init` returns no `MetaState`, or one without arrays to learn.
    """
    state = learner.init(params)
    if not isinstance(state, MetaState):
        raise ValueError(
            f"fit: learner.init must return a metajax.MetaState, but returned "
            f"{type(state).__name__}."
        )
    if not jax.tree.leaves(state.meta_params):
        raise ValueError("fit: there is nothing to learn: params has no arrays.")
    # Every call consumes its state, and the caller keeps its arrays.
    return jax.tree.map(jnp.copy, state)


def check_updated(updated: Any) -> tuple[MetaState, Metrics]:
    """Returns the result of `learner.update`; raises `ValueError` if its type is wrong."""
    match updated:
        case (MetaState(), Mapping()):
            return updated
    found = f"({', '.join(type(x).__name__ for x in updated)})" if type(updated) is tuple else None
    raise ValueError(
        "fit: learner.update must return (MetaState, dict of metrics), but returned "
        f"{found or type(updated).__name__}."
    )


def check_counted(state: MetaState, step: int) -> None:
    """Raises `ValueError` unless the state has counted `step` meta-updates."""
    if int(state.step) != step:
        raise ValueError(
            f"fit: learner.update must count the meta-updates in state.step, which is "
            f"{state.step} after {step}."
        )
