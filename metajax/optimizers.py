"""Inner optimizers: plain, learned, or for a part of the parameters; what they read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.interpreters import partial_eval

from metajax.base import (
    Array,
    MetaParams,
    Params,
    PyTree,
    check_function,
    check_integer,
    leaf_shapes,
    named_leaves,
)
from metajax.gradients import equations

Optimizer: TypeAlias = optax.GradientTransformation
PathPredicate = Callable[[tuple[Any, ...]], bool]


def _any_path(path: tuple[Any, ...]) -> bool:
    return True


class LearnedOptimizer(NamedTuple):
    """An inner optimizer, what of it is meta-learned and which parameters it moves.

    Attributes:
      init: `params -> hyper-parameters`, a pytree of floats, learned by the outer loop; traceable.
      make: `hyper-parameters -> optax transformation` of the parameters that move.
      moves: whether the parameter at a pytree path adapts. The inner loop closes over the others,
        which cost nothing per step; in trees of what moves, `optax.MaskedNode` is in their place.

    Example, one learned step size for all parameters:

    >>> import jax.numpy as jnp, optax, metajax
    >>> learned = metajax.LearnedOptimizer(
    ...     init=lambda params: jnp.asarray(0.1), make=lambda rate: optax.sgd(rate))
    >>> adapt = metajax.inner_loop(lambda w, x, rng: ((w * x) ** 2, {}), learned, num_steps=2)
    >>> inner, _ = adapt.init(jnp.asarray(1.0))
    """

    init: Callable[[Params], PyTree]
    make: Callable[[PyTree], Optimizer]
    moves: PathPredicate = _any_path


def as_learned(optimizer: Optimizer | LearnedOptimizer) -> LearnedOptimizer:
    """An optax transformation as a `LearnedOptimizer` that learns nothing."""
    if isinstance(optimizer, LearnedOptimizer):
        return optimizer
    check_optimizer("the inner optimizer", optimizer, ", or a LearnedOptimizer")
    return LearnedOptimizer(lambda params: (), lambda inner: optimizer)


def check_optimizer(what: str, optimizer: Any, otherwise: str = "") -> None:
    """Raises `ValueError` for anything but an optax transformation."""
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ValueError(
            f"{what} must be an optax transformation such as optax.sgd(0.01){otherwise}; got "
            f"{optimizer!r}."
        )


def only(params: Params, where: PathPredicate) -> Params:
    """The parameters whose path `where` accepts, `optax.MaskedNode` in place of the others."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x if where(path) else optax.MaskedNode(), params
    )


def merged(moving: Params, frozen: Params) -> Params:
    """The tree of which `moving` and `frozen` are the two parts."""
    return jax.tree.map(
        lambda m, f: f if isinstance(m, optax.MaskedNode) else m,
        moving,
        frozen,
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )


def learned_step_sizes(learning_rate: float) -> LearnedOptimizer:
    """SGD with one learned step size per parameter, starting from `learning_rate`."""
    check_rate("learned_step_sizes", learning_rate)

    def init(params: Params) -> Params:
        return jax.tree.map(lambda x: jnp.full_like(x, learning_rate), params)

    def make(rates: Params) -> Optimizer:
        return optax.stateless(
            lambda grads, params: jax.tree.map(lambda r, g: -r * g, rates, grads)
        )

    return LearnedOptimizer(init, make)


def learned_per_step_sizes(learning_rate: float, num_steps: int) -> LearnedOptimizer:
    """SGD with one learned step size per array and inner step, starting from `learning_rate`.

    Steps beyond `num_steps` have the last size, so that an evaluation may take more.

    Example:

    >>> import jax.numpy as jnp, optax, metajax
    >>> loss = lambda params, batch, rng: (jnp.mean((params["w"] - batch) ** 2), {})
    >>> learner = metajax.maml(
    ...     loss, metajax.learned_per_step_sizes(0.1, 5), optax.adam(1e-3), num_steps=5)
    >>> learner.init({"w": jnp.zeros(3)}).meta_params.inner["w"].shape
    (5,)

    References:
      Antoniou et al., `How to train your MAML <https://arxiv.org/abs/1810.09502>`_, 2019,
      section 4, "learning per-layer per-step learning rates".
    """
    num_steps = check_integer("learned_per_step_sizes: num_steps", num_steps)
    check_rate("learned_per_step_sizes", learning_rate)

    def init(params: Params) -> PyTree:
        return jax.tree.map(lambda x: jnp.full((num_steps,), learning_rate, x.dtype), params)

    def make(sizes: PyTree) -> Optimizer:
        def update(grads, step, params=None):
            at = jnp.minimum(step, num_steps - 1)
            return jax.tree.map(lambda s, g: -jnp.take(s, at) * g, sizes, grads), step + 1

        return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)

    return LearnedOptimizer(init, make)


def count_steps(optimizer: Optimizer | LearnedOptimizer, where: PathPredicate) -> LearnedOptimizer:
    """An inner optimizer that adds 1 at every step to the parameters that `where` accepts.

    So the number of the inner step is a parameter: a model with a normalization of its own for
    every step reads it in the inner loop, in any objective and in any metric. The others are the
    optimizer's. A parameter that is rounded to an index has a gradient of zero, and the outer loop
    leaves it where it is.

    Raises:
      ValueError: as `adapt_only`.
    """
    others = adapt_only(optimizer, other_than(where))

    def make(inner: PyTree) -> Optimizer:
        def counts(params: Params) -> PyTree:
            return jax.tree_util.tree_map_with_path(lambda path, _: where(path), params)

        plus_one = optax.stateless(lambda grads, params: jax.tree.map(jnp.ones_like, grads))
        return optax.partition({True: plus_one, False: others.make(inner)}, counts)

    return LearnedOptimizer(others.init, make, lambda path: where(path) or others.moves(path))


def adapt_only(optimizer: Optimizer | LearnedOptimizer, where: PathPredicate) -> LearnedOptimizer:
    """An inner optimizer that moves only the parameters whose pytree path `where` accepts.

    A `LearnedOptimizer` learns hyper-parameters for those alone. The others are meta-learned like
    the rest, and cost the inner loop neither memory nor operations.

    Raises:
      ValueError: if `where` is no function of a path; when initialized, if none of the parameters
        would move, or all of them.
    """
    check_function("the path predicate", where, "path")
    whole = as_learned(optimizer)

    def moves(path: tuple[Any, ...]) -> bool:
        return bool(where(path)) and whole.moves(path)

    def init(params: Params) -> PyTree:
        accepted = {bool(where(path)) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
        if len(accepted) != 2:
            raise ValueError(
                "the path predicate must divide the parameters in those that adapt and those that "
                f"do not; with it {'all' if accepted == {True} else 'none'} of "
                f"{', '.join(named_leaves(params))} adapt."
            )
        return whole.init(only(params, where))

    return LearnedOptimizer(init, whole.make, moves)


def other_than(where: PathPredicate) -> PathPredicate:
    """The predicate that accepts what `where` does not."""
    check_function("the path predicate", where, "path")
    return lambda path: not where(path)


def on_params(optimizer: Optimizer, inner: Optimizer | None = None) -> Optimizer:
    """An outer optimizer of the parameters alone, lifted to `MetaParams(params, inner)`.

    For one that knows their structure, such as `optax.masked` or `optax.partition` with a tree of
    labels.

    Args:
      optimizer: of the parameters.
      inner: of the learned inner hyper-parameters; needed where there are some.

    Raises:
      ValueError: when initialized, if there are learned inner hyper-parameters and no `inner`.

    Example, a body that learns more slowly than the head:

    >>> import jax.numpy as jnp, optax, metajax
    >>> outer = metajax.on_params(optax.partition(
    ...     {"slow": optax.adam(1e-4), "fast": optax.adam(1e-3)},
    ...     {"body": "slow", "head": "fast"}))
    >>> loss = lambda params, x, rng: (jnp.mean((x @ params["body"] @ params["head"]) ** 2), {})
    >>> learner = metajax.maml(loss, optax.sgd(0.1), outer)
    >>> state = learner.init({"body": jnp.ones((2, 2)), "head": jnp.ones((2, 1))})
    """
    both = optimizer, optax.identity() if inner is None else inner
    for each in both:
        check_optimizer("on_params: each optimizer", each)
    first, second = map(optax.with_extra_args_support, both)

    def init(meta_params: MetaParams) -> PyTree:
        if inner is None and jax.tree.leaves(meta_params.inner):
            raise ValueError(
                "on_params: there are learned inner hyper-parameters, so it needs an optimizer of "
                "theirs as well: on_params(optimizer, inner=optax.adam(1e-3))."
            )
        return first.init(meta_params.params), second.init(meta_params.inner)

    def update(grads, state, meta_params=None, **extra):
        own, others = (None, None) if meta_params is None else meta_params
        params, first_state = first.update(grads.params, state[0], own, **extra)
        learned, second_state = second.update(grads.inner, state[1], others, **extra)
        return MetaParams(params, learned), (first_state, second_state)

    return optax.GradientTransformationExtraArgs(init, update)


def lookahead(fast: Optimizer, sync_period: int, slow_step_size: float) -> Optimizer:
    """`optax.lookahead` with the slow parameters in its state, as an outer optimizer needs it.

    The meta-parameters are the fast ones; they are set to the slow ones at every `sync_period`-th
    update.

    References:
      Zhang et al., `Lookahead Optimizer: k steps forward, 1 step back
      <https://arxiv.org/abs/1907.08610>`_, 2019, algorithm 1.
    """
    both = optax.lookahead(fast, sync_period, slow_step_size)

    def init(params: PyTree) -> PyTree:
        return both.init(optax.LookaheadParams.init_synced(params)), params

    def update(grads, state, params=None):
        inner, slow = state
        updates, inner = both.update(grads, inner, optax.LookaheadParams(params, slow))
        return updates.fast, (inner, optax.apply_updates(slow, updates.slow))

    return optax.GradientTransformation(init, update)


def check_update(optimizer: Optimizer, meta_params: MetaParams) -> None:
    """Raises `ValueError` for an outer optimizer that asks for more than it is given."""
    try:
        jax.eval_shape(
            lambda grads: optimizer.update(grads, optimizer.init(grads), grads, value=jnp.ones(()))[
                0
            ],
            meta_params,
        )
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise ValueError(
            "meta_learner: the outer optimizer's update cannot be called with (gradients, state, "
            f"parameters, value): {error}. It sees MetaParams(params, inner): lift one with labels "
            "or masks of the parameters with metajax.on_params, and take metajax.lookahead for "
            "optax.lookahead. One that needs the loss itself, such as the line search of "
            "optax.lbfgs, cannot be used."
        ) from error


def check_rate(name: str, learning_rate: Any) -> None:
    """Raises `ValueError` for a number that is not finite; what is traced is not looked at."""
    known = isinstance(learning_rate, int | float | np.number)
    if not (np.isfinite(learning_rate) if known else isinstance(learning_rate, jax.Array)):
        raise ValueError(f"{name}: learning_rate must be a finite number, got {learning_rate!r}.")


class UpdateReads(NamedTuple):
    """What an inner optimizer's update is a function of.

    Attributes:
      searches: whether it searches along a line, in a loop that reverse mode cannot cross.
      value: whether it uses the loss's value.
      params: whether the parameters themselves have a part in it, as in weight decay.
      ignored: paths of the parameters whose gradient has no part in their update.
    """

    searches: bool
    value: bool
    params: bool
    ignored: list[str]


def update_reads(update: Callable[..., Any], grads: Params, state: PyTree, value: Array):
    """Reads the program of `update(grads, state, params, value)`, without running it."""
    try:
        traced, shapes = jax.make_jaxpr(update, return_shape=True)(grads, state, grads, value)
    except TypeError as error:
        raise ValueError(
            "inner_loop: the inner optimizer's update cannot be called with (gradients, state, "
            f"parameters, value=, grad=, value_fn=): {error}. Choose one that needs no more."
        ) from error
    sizes, updated = leaf_shapes(grads), leaf_shapes(shapes[0])
    if sizes != updated:
        raise ValueError(
            f"inner_loop: the inner optimizer's updates have the shapes {updated}, the parameters "
            f"that adapt {sizes}."
        )
    jaxpr = traced.jaxpr
    num, num_state = len(jax.tree.leaves(grads)), len(jax.tree.leaves(state))

    def used(outputs: range) -> list[bool]:
        wanted = [i in outputs for i in range(len(jaxpr.outvars))]
        return partial_eval.dce_jaxpr(jaxpr, wanted)[1]

    everything = used(range(len(jaxpr.outvars)))
    return UpdateReads(
        searches=any(eqn.primitive.name == "while" for eqn in equations(jaxpr)),
        value=everything[-1],
        params=any(everything[num + num_state : -1]),
        ignored=[path for i, path in enumerate(sizes) if not any(used(range(i, i + 1))[:num])],
    )
