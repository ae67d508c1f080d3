"""The parts that all outer steps share: initial state, adaptation, outer optimizer."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import optax

from metajax.base import (
    Batch,
    Episode,
    Key,
    MetaLearner,
    MetaParams,
    MetaState,
    Metrics,
    Params,
    PyTree,
    strongly_typed,
)
from metajax.learner import check_state
from metajax.optimizers import check_outer_update
from metajax.rl.inner import InnerLoop

Update = Callable[[MetaState, Episode, Key], tuple[MetaState, Metrics]]


def make_learner(
    loop: InnerLoop, opt_init: Callable[[MetaParams], PyTree], update: Update
) -> MetaLearner:
    """The `MetaLearner` of an outer step; its `inner` is `loop`.

    Args:
      loop: the inner loop.
      opt_init: `meta_params -> opt_state`.
      update: `MetaLearner.update`.
    """

    def init(params: Params) -> MetaState:
        inner, _ = loop.collect.init(params)
        meta_params = strongly_typed(MetaParams(params, inner))
        opt_state = strongly_typed(opt_init(meta_params))
        return MetaState(meta_params, opt_state, (), jnp.zeros((), jnp.int32))

    def adapt(state: MetaState, task: Batch, rng: Key) -> Params:
        check_state(state)
        return loop.collect.apply(state.meta_params, task, rng)[0]

    return MetaLearner(init, adapt, update, loop)


def checked_init(optimizer: optax.GradientTransformation) -> Callable[[MetaParams], PyTree]:
    """The optimizer's `init`, which first checks that its `update` can be called."""

    def init(meta_params: MetaParams) -> PyTree:
        check_outer_update(optimizer, meta_params)
        return optimizer.init(meta_params)

    return init
