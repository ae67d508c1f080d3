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


class AdaptInfo(NamedTuple):
    """What one task's adaptation reports, stacked over inner steps.

    Attributes:
      loss: `[num_steps]`, support loss before each step.
      aux: the loss function's own metrics before each step, leaves `[num_steps, ...]`.
      probe: the probe's outputs, leaves `[num_steps + 1, ...]`; `()` without a probe.
      inner_state: the inner optimizer's state to carry on; `()` where none is carried.
    """

    loss: Array
    aux: Aux
    probe: PyTree
    inner_state: PyTree


class Adapt(NamedTuple):
    """An inner loop, as `metajax.inner_loop` builds it.

    Attributes:
      init: `params -> (learned inner parameters, carried inner state)`.
      apply: `(meta_params, support, rng, *, inner_state=(), probe=None) -> (adapted, AdaptInfo)`,
        for one task. `probe(params, step)` is evaluated on the parameters before every step and
        after the last one.
      carry: how the inner optimizer's state passes from task to task: `None`, `"mean"` or
        `"serial"`.
      differentiates_steps: whether the parameters of every step carry a meta-gradient, or only
        the final ones (implicit differentiation).
      forward: whether forward mode crosses adaptation as well.
    """

    init: Callable[[Params], tuple[PyTree, PyTree]]
    apply: Callable[..., tuple[Params, AdaptInfo]]
    carry: str | None = None
    differentiates_steps: bool = True
    forward: bool = True


class Objective(Protocol):
    """A scalar meta-objective of one task; its gradient is the meta-gradient.

    Returns `(value, (metrics, inner_state))`.
    """

    def __call__(
        self,
        adapt: Adapt,
        meta_params: MetaParams,
        episode: Episode,
        rng: Key,
        /,
        *,
        inner_state: PyTree = (),
    ) -> tuple[Array, tuple[Metrics, PyTree]]: ...
