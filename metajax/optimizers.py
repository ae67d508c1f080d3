"""Inner optimizers, plain or learned, for all or some of the parameters; outer optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from metajax import base
from metajax.base import MetaParams, Params, PyTree

Optimizer: TypeAlias = optax.GradientTransformation
PathPredicate = Callable[[tuple[Any, ...]], bool]


class LearnedOptimizer(NamedTuple):
    """An inner optimizer whose hyper-parameters the outer loop learns.

    Attributes:
      init: `params -> hyper-parameters`, a pytree of floats; traceable.
      make: `hyper-parameters -> optax transformation` of the parameters that adapt.
      moves: `pytree path -> whether the parameter there adapts`. The inner loop closes over the
        other parameters, which then cost nothing per step. The optax transformation finds
        `optax.MaskedNode` in their places.
      counts: `pytree path -> whether the parameter there counts the inner steps`, see
        `count_steps`.
      per_task: whether the state counts the steps of one task, so that nothing of it is carried to
        the next.

    Example, one learned step size for all parameters:

    >>> import jax.numpy as jnp, optax, metajax
    >>> learned = metajax.LearnedOptimizer(
    ...     init=lambda params: jnp.asarray(0.1), make=lambda rate: optax.sgd(rate))
    >>> adapt = metajax.inner_loop(lambda w, x, rng: ((w * x) ** 2, {}), learned, num_steps=2)
    >>> inner, _ = adapt.init(jnp.asarray(1.0))
    """

    init: Callable[[Params], PyTree]
    make: Callable[[PyTree], Optimizer]
    moves: PathPredicate = lambda path: True
    counts: PathPredicate = lambda path: False
    per_task: bool = False


def as_learned(optimizer: Optimizer | LearnedOptimizer) -> LearnedOptimizer:
    """Lifts an optax transformation to a `LearnedOptimizer` without hyper-parameters."""
    if isinstance(optimizer, LearnedOptimizer):
        base.check_function("LearnedOptimizer.init", optimizer.init, "params")
        base.check_function("LearnedOptimizer.make", optimizer.make, "inner")
        return optimizer
    check_optimizer("the inner optimizer", optimizer, ", or a LearnedOptimizer")
    return LearnedOptimizer(lambda params: (), lambda inner: optimizer)


def check_optimizer(what: str, optimizer: Any, otherwise: str = "") -> None:
    """Raises `ValueError` unless `optimizer` is an optax transformation."""
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ValueError(
            f"{what} must be an optax transformation such as optax.sgd(0.01){otherwise}; got "
            f"{optimizer!r}."
        )


def only(params: Params, where: PathPredicate) -> Params:
    """The parameters at the paths that `where` accepts, `optax.MaskedNode` instead of the rest."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x if where(path) else optax.MaskedNode(), params
    )


def merged(moving: Params, frozen: Params) -> Params:
    """Puts the two parts of a tree together again."""
    return jax.tree.map(
        lambda m, f: f if isinstance(m, optax.MaskedNode) else m,
        moving,
        frozen,
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )


def learned_step_sizes(learning_rate: float) -> LearnedOptimizer:
    r"""SGD with one learned step size per parameter: :math:`-\alpha \odot \nabla L`.

    Args:
      learning_rate: the initial value of all step sizes.

    Raises:
      ValueError: if `learning_rate` is not a finite number.

    Example:

    >>> import jax.numpy as jnp, optax, metajax
    >>> loss = lambda params, batch, rng: (jnp.mean((params["w"] - batch) ** 2), {})
    >>> learner = metajax.maml(loss, metajax.learned_step_sizes(0.1), optax.adam(1e-3))
    >>> learner.init({"w": jnp.zeros(3)}).meta_params.inner["w"].shape
    (3,)

    References:
      Li et al., `Meta-SGD: Learning to Learn Quickly for Few-Shot Learning
      <https://arxiv.org/abs/1707.09835>`_, 2017, equation 2.
    """
    base.check_number("learned_step_sizes: learning_rate", learning_rate, "(-inf, inf)")

    def init(params: Params) -> Params:
        return jax.tree.map(lambda x: jnp.full_like(x, learning_rate), params)

    def make(rates: Params) -> Optimizer:
        return optax.stateless(
            lambda grads, params: jax.tree.map(lambda r, g: -r * g, rates, grads)
        )

    return LearnedOptimizer(init, make)


def learned_per_step_sizes(learning_rate: float, num_steps: int) -> LearnedOptimizer:
    """SGD with one learned step size per array and inner step.

    Steps beyond `num_steps` use the last step size, so that evaluation may take more steps.

    Args:
      learning_rate: the initial value of all step sizes.
      num_steps: the number of inner steps with a step size of their own.

    Raises:
      ValueError: if `learning_rate` is not a finite number or `num_steps` not a positive integer.

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
    num_steps = base.check_integer("learned_per_step_sizes: num_steps", num_steps)
    base.check_number("learned_per_step_sizes: learning_rate", learning_rate, "(-inf, inf)")

    def init(params: Params) -> PyTree:
        return jax.tree.map(lambda x: jnp.full((num_steps,), learning_rate, x.dtype), params)

    def make(sizes: PyTree) -> Optimizer:
        def update(grads, step, params=None):
            at = jnp.minimum(step, num_steps - 1)
            return jax.tree.map(lambda s, g: -jnp.take(s, at) * g, sizes, grads), step + 1

        return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)

    return LearnedOptimizer(init, make, per_task=True)


def count_steps(optimizer: Optimizer | LearnedOptimizer, where: PathPredicate) -> LearnedOptimizer:
    """Adds 1 to the parameters that `where` accepts at every inner step, and adapts the others.

    Such a parameter counts the inner steps. A model with separate normalizations for every step
    rounds it to an index, in the inner loop as in any objective and metric. The gradient of the
    index is zero, so the outer loop does not change the parameter.

    Args:
      optimizer: the inner optimizer of the other parameters.
      where: `pytree path -> whether the parameter there counts`.

    Returns:
      An inner optimizer, for `inner_loop` and the algorithms.

    Raises:
      ValueError: if `where` is not a function of a path; when initialized, if it accepts none or
        all of the parameters.

    Example:

    >>> import jax, jax.numpy as jnp, optax, metajax
    >>> optimizer = metajax.count_steps(optax.sgd(0.1), lambda path: path[0].key == "step")
    >>> loss = lambda params, x, rng: (jnp.mean((params["w"] - x) ** 2), {})
    >>> learner = metajax.maml(loss, optimizer, optax.adam(1e-3), num_steps=3)
    >>> state = learner.init({"w": jnp.zeros(()), "step": jnp.zeros(())})
    >>> float(learner.adapt(state, jnp.ones(5), jax.random.key(0))["step"])
    3.0

    References:
      Antoniou et al., `How to train your MAML <https://arxiv.org/abs/1810.09502>`_, 2019,
      section 4, "per-step batch normalization".
    """
    others = adapt_only(optimizer, other_than(where))

    def make(inner: PyTree) -> Optimizer:
        def counts(params: Params) -> PyTree:
            return jax.tree_util.tree_map_with_path(lambda path, _: where(path), params)

        plus_one = optax.stateless(lambda grads, params: jax.tree.map(jnp.ones_like, grads))
        return optax.partition({True: plus_one, False: others.make(inner)}, counts)

    return others._replace(
        make=make,
        moves=lambda path: where(path) or others.moves(path),
        counts=lambda path: where(path) or others.counts(path),
    )


def adapt_only(optimizer: Optimizer | LearnedOptimizer, where: PathPredicate) -> LearnedOptimizer:
    """Adapts only the parameters that `where` accepts; the outer loop still learns all of them.

    The other parameters cost the inner loop neither memory nor operations. A `LearnedOptimizer`
    learns hyper-parameters for the adapting parameters only.

    Args:
      optimizer: the inner optimizer of the adapting parameters.
      where: `pytree path -> whether the parameter there adapts`.

    Returns:
      An inner optimizer, for `inner_loop` and the algorithms.

    Raises:
      ValueError: if `where` is not a function of a path; when initialized, if it accepts none or
        all of the parameters.

    Example:

    >>> import jax.numpy as jnp, optax, metajax
    >>> optimizer = metajax.adapt_only(optax.sgd(0.1), lambda path: path[0].key == "head")
    >>> loss = lambda params, x, rng: (jnp.mean((x @ params["body"] @ params["head"]) ** 2), {})
    >>> learner = metajax.maml(loss, optimizer, optax.adam(1e-3))
    >>> state = learner.init({"body": jnp.ones((2, 2)), "head": jnp.ones((2, 1))})
    """
    base.check_function("the path predicate", where, "path")
    whole = as_learned(optimizer)

    def moves(path: tuple[Any, ...]) -> bool:
        return bool(where(path)) and whole.moves(path)

    def init(params: Params) -> PyTree:
        accepted = {bool(where(path)) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
        if len(accepted) != 2:
            raise ValueError(
                "the path predicate must make some of the parameters adapt and others not, but "
                f"{'all' if accepted == {True} else 'none'} of "
                f"{', '.join(base.named_leaves(params))} would adapt."
            )
        return whole.init(only(params, where))

    return whole._replace(init=init, moves=moves)


def other_than(where: PathPredicate) -> PathPredicate:
    """The negation of a path predicate."""
    base.check_function("the path predicate", where, "path")
    return lambda path: not where(path)


def on_params(optimizer: Optimizer, inner: Optimizer | None = None) -> Optimizer:
    """Lifts an outer optimizer of the parameters to one of `MetaParams(params, inner)`.

    An optimizer needs that if it depends on the structure of the parameters, such as
    `optax.masked` or `optax.partition` with a tree of labels.

    Args:
      optimizer: the optimizer of the parameters.
      inner: the optimizer of the learned inner hyper-parameters, required if there are any.

    Raises:
      ValueError: for anything but optax transformations; when initialized, if there are learned
        inner hyper-parameters and no `inner`.

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
                "on_params: the learned inner hyper-parameters need an optimizer as well: "
                "on_params(optimizer, inner=optax.adam(1e-3))."
            )
        return first.init(meta_params.params), second.init(meta_params.inner)

    def update(grads, state, meta_params=None, **extra):
        own, others = (None, None) if meta_params is None else meta_params
        params, first_state = first.update(grads.params, state[0], own, **extra)
        learned, second_state = second.update(grads.inner, state[1], others, **extra)
        return MetaParams(params, learned), (first_state, second_state)

    return optax.GradientTransformationExtraArgs(init, update)


def lookahead(fast: Optimizer, sync_period: int, slow_step_size: float) -> Optimizer:
    """`optax.lookahead` as an outer optimizer, with the slow parameters in its state.

    The meta-parameters are the fast parameters. At every `sync_period`-th update the slow ones move
    towards them, and they are reset to the slow ones.

    Args:
      fast: the optimizer of the fast parameters.
      sync_period: the number of updates between two synchronizations.
      slow_step_size: how far the slow parameters move, as a fraction of the way.

    Raises:
      ValueError: if `sync_period` is not a positive integer or `slow_step_size` not within [0, 1].

    Example:

    >>> import jax.numpy as jnp, optax, metajax
    >>> outer = metajax.lookahead(optax.adam(1e-3), sync_period=5, slow_step_size=0.5)
    >>> loss = lambda params, batch, rng: (jnp.mean((params - batch) ** 2), {})
    >>> learner = metajax.maml(loss, optax.sgd(0.1), outer)

    References:
      Zhang et al., `Lookahead Optimizer: k steps forward, 1 step back
      <https://arxiv.org/abs/1907.08610>`_, 2019, algorithm 1.
    """
    sync_period = base.check_integer("lookahead: sync_period", sync_period)
    base.check_number("lookahead: slow_step_size", slow_step_size, "[0, 1]")
    both = optax.lookahead(fast, sync_period, slow_step_size)

    def init(params: PyTree) -> PyTree:
        # Copies, because an update that is given the state's memory cannot be given it twice.
        slow = jax.tree.map(jnp.copy, params)
        return both.init(optax.LookaheadParams.init_synced(params)), slow

    def update(grads, state, params=None):
        inner, slow = state
        updates, inner = both.update(grads, inner, optax.LookaheadParams(params, slow))
        return updates.fast, (inner, optax.apply_updates(slow, updates.slow))

    return optax.GradientTransformation(init, update)


def check_outer_update(optimizer: Optimizer, meta_params: MetaParams) -> None:
    """Raises `ValueError` if an outer optimizer needs arguments that it does not get."""

    def first_updates(grads):
        return optimizer.update(grads, optimizer.init(grads), grads, value=jnp.ones(()))[0]

    try:
        jax.eval_shape(first_updates, meta_params)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise ValueError(
            "meta_learner: the outer optimizer's update cannot be called with (gradients, state, "
            f"parameters, value): {error}. The parameters are MetaParams(params, inner): wrap "
            "an optimizer with labels or masks in metajax.on_params, and use metajax.lookahead "
            "instead of optax.lookahead. Optimizers that evaluate the loss, such as optax.lbfgs, "
            "cannot be used."
        ) from error
