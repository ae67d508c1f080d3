"""The types that everything else is written in: episodes, meta-parameters, meta-learners."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array
Key = jax.Array
PyTree = Any
Params = PyTree
Batch = PyTree
Aux = PyTree
Metrics = dict[str, Any]


class LossFn(Protocol):
    """A loss on one batch of one task.

    Any function `(params, batch, rng) -> (scalar loss, pytree of metrics)` is one, whatever
    library the model behind it comes from.
    """

    def __call__(self, params: Params, batch: Batch, rng: Key, /) -> tuple[Array, Aux]: ...


class Episode(NamedTuple):
    """One task's data; with a leading task axis on every leaf, a meta-batch of tasks.

    Attributes:
      support: what the inner loop adapts on, leaves `[shots, ...]` (`[tasks, shots, ...]`).
      query: what the adapted parameters are judged on, leaves `[queries, ...]`.
    """

    support: Batch
    query: Batch


class MetaParams(NamedTuple):
    """What the outer loop learns.

    Attributes:
      params: the initialization from which every task adapts.
      inner: learned hyper-parameters of the inner optimizer; `()` when there are none.
    """

    params: Params
    inner: PyTree = ()


class MetaState(NamedTuple):
    """The state of a meta-learner.

    Attributes:
      meta_params: what is learned.
      opt_state: the outer optimizer's state.
      inner_state: the inner optimizer's state that is carried from one meta-update to the next;
        `()` where each task starts from a fresh one.
      step: int32 count of meta-updates.
    """

    meta_params: MetaParams
    opt_state: PyTree
    inner_state: PyTree
    step: Array


class MetaLearner(NamedTuple):
    """A meta-learning algorithm as three pure functions.

    Attributes:
      init: `params -> MetaState`.
      adapt: `(state, support, rng) -> adapted params`, for one task.
      update: `(state, episodes, rng) -> (state, metrics)`, one meta-update on a meta-batch whose
        leaves are `[tasks, ...]`.
    """

    init: Callable[[Params], MetaState]
    adapt: Callable[[MetaState, Batch, Key], Params]
    update: Callable[[MetaState, Episode, Key], tuple[MetaState, Metrics]]
