"""Inner optimizers: learned, or for a part of the parameters; what they are refused for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metajax.base import Array, Params, PyTree, check_function, check_integer

Optimizer: TypeAlias = optax.GradientTransformation
PathPredicate = Callable[[tuple[Any, ...]], bool]

NOT_DIFFERENTIABLE = (
    "inner_loop: the derivative of the inner optimizer's update is not finite where an array, or "
    "the part of it that belongs to a unit, is zero or has a gradient of zero, so the first dead "
    "unit would turn the second-order meta-gradient into NaN. For optax.adam and its relatives "
    "pass eps_root, as in optax.adam(lr, eps_root=1e-8); or choose first_order() or implicit(), "
    "which do not differentiate the update."
)
# Inner updates that are tried when an inner loop is initialized: some rules change after a few.
TRIED_STEPS = 10


class LearnedOptimizer(NamedTuple):
    """An inner optimizer with meta-learned hyper-parameters.

    Attributes:
      init: `params -> hyper-parameters`, a pytree of floats, learned by the outer loop; traceable.
      make: `hyper-parameters -> optax transformation`.

    Example, one learned step size for all parameters:

    >>> import jax.numpy as jnp, optax, metajax
    >>> learned = metajax.LearnedOptimizer(
    ...     init=lambda params: jnp.asarray(0.1), make=lambda rate: optax.sgd(rate))
    >>> adapt = metajax.inner_loop(lambda w, x, rng: ((w * x) ** 2, {}), learned, num_steps=2)
    >>> inner, _ = adapt.init(jnp.asarray(1.0))
    """

    init: Callable[[Params], PyTree]
    make: Callable[[PyTree], optax.GradientTransformation]


InnerOptimizer = TypeVar("InnerOptimizer", Optimizer, LearnedOptimizer)


def learned_step_sizes(learning_rate: float) -> LearnedOptimizer:
    """SGD with one learned step size per parameter, starting from `learning_rate`."""

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

    def init(params: Params) -> PyTree:
        return jax.tree.map(lambda x: jnp.full((num_steps,), learning_rate, x.dtype), params)

    def make(sizes: PyTree) -> Optimizer:
        def update(grads, step, params=None):
            at = jnp.minimum(step, num_steps - 1)
            return jax.tree.map(lambda s, g: -jnp.take(s, at) * g, sizes, grads), step + 1

        return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)

    return LearnedOptimizer(init, make)


def counting(optimizer: InnerOptimizer, where: PathPredicate) -> InnerOptimizer:
    """An inner optimizer that adds 1 at every step to the parameters that `where` accepts.

    So the inner step is a part of the parameters: what they belong to, a model with a
    normalization of its own for every step for one, sees it in the inner loop, in any objective and
    in any metric. The others are the optimizer's. Whatever rounds such a parameter to an index has
    a gradient of zero there, and the outer loop leaves it where it is.

    Raises:
      ValueError: as `adapting`.
    """
    others = adapting(optimizer, other_than(where))

    def plus_one(updates: Params, params: Params | None = None) -> Params:
        return jax.tree_util.tree_map_with_path(
            lambda path, u: jnp.ones_like(u) if where(path) else u, updates
        )

    def counted(transform: Optimizer) -> Optimizer:
        return optax.chain(transform, optax.stateless(plus_one))

    if isinstance(others, LearnedOptimizer):
        learned = others
        return LearnedOptimizer(learned.init, lambda inner: counted(learned.make(inner)))
    return counted(others)


def adapting(optimizer: InnerOptimizer, where: PathPredicate) -> InnerOptimizer:
    """An inner optimizer that moves only the parameters whose pytree path `where` accepts.

    A `LearnedOptimizer` learns hyper-parameters for those alone.

    Raises:
      ValueError: if `where` is no function of a path; when initialized, if it accepts none of the
        parameters, or all of them.
    """
    check_function("the path predicate", where, "path")

    def labels(params: Params):
        labelled = jax.tree_util.tree_map_with_path(
            lambda path, _: "adapt" if where(path) else "keep", params
        )
        if len(set(jax.tree.leaves(labelled))) != 2:
            paths = [
                jax.tree_util.keystr(path)
                for path, _ in jax.tree_util.tree_leaves_with_path(params)
            ]
            raise ValueError(
                "the path predicate must accept some of the parameters and not others; it "
                f"accepted {'all' if 'adapt' in jax.tree.leaves(labelled) else 'none'} of "
                f"{', '.join(paths)}."
            )
        return labelled

    def restricted(transform: Optimizer) -> Optimizer:
        return optax.partition({"adapt": transform, "keep": optax.set_to_zero()}, labels)

    if isinstance(optimizer, LearnedOptimizer):
        learned = optimizer

        def init(params: Params):
            # Masked as the partition masks what the optimizer sees.
            return learned.init(
                jax.tree.map(
                    lambda label, p: p if label == "adapt" else optax.MaskedNode(),
                    labels(params),
                    params,
                )
            )

        return LearnedOptimizer(init, lambda inner: restricted(learned.make(inner)))
    return restricted(optimizer)


def other_than(where: PathPredicate) -> PathPredicate:
    """The predicate that accepts what `where` does not."""
    check_function("the path predicate", where, "path")
    return lambda path: not where(path)


def check_update(
    what: str, optimizer: optax.GradientTransformation, params: Params, **extra: PyTree
) -> None:
    """Raises `ValueError` for an optimizer that asks for more than it is given."""
    try:
        jax.eval_shape(
            lambda grads: optimizer.update(grads, optimizer.init(grads), grads, **extra)[0], params
        )
    except TypeError as error:
        given = "".join(f", {name}" for name in extra)
        raise ValueError(
            f"{what} optimizer's update cannot be called with (gradients, state, parameters"
            f"{given}): {error}. Choose one that needs no more; a line search (optax.lbfgs) does."
        ) from error


def _updates(transform: Optimizer, grads: Params, params: Params, num_steps: int) -> Params:
    """The updates of successive steps that all see the same gradients and parameters."""

    def body(opt_state, _):
        updates, opt_state = transform.update(grads, opt_state, params)
        return opt_state, updates

    return jax.lax.scan(body, transform.init(params), None, length=num_steps)[1]


def _filled(params: Params, fill: Callable[[tuple[int, ...]], np.ndarray]) -> list[Array]:
    return [jnp.asarray(fill(np.shape(p)), jnp.result_type(p)) for p in jax.tree.leaves(params)]


def _increasing(shape: tuple[int, ...]) -> np.ndarray:
    return np.linspace(1.0, 2.0, int(np.prod(shape))).reshape(shape)


def _with_dead_units(shape: tuple[int, ...]) -> np.ndarray:
    """Gradients without those of the first unit on every axis."""
    grad = _increasing(shape)
    for axis, size in enumerate(shape):
        if size > 1:
            np.moveaxis(grad, axis, 0)[0] = 0.0
    return grad


def check_adapts_all(transform: Optimizer, params: Params, num_steps: int) -> None:
    """Raises `ValueError` for an optimizer that leaves an array where it is."""
    treedef: Any = jax.tree.structure(params)
    with jax.ensure_compile_time_eval():
        grads, ones = (treedef.unflatten(_filled(params, f)) for f in (_increasing, np.ones))
        updates = _updates(transform, grads, ones, num_steps)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        if update.size and not np.any(update):
            raise ValueError(
                "inner_loop: implicit() differentiates the minimizer over all parameters, but the "
                f"inner optimizer leaves params{jax.tree_util.keystr(path)} where it is. Use "
                "second_order() or first_order(), or close the loss over what does not adapt."
            )


def check_differentiable(transform: Optimizer, params: Params, num_steps: int) -> None:
    """Raises `ValueError` unless updates have a derivative where units or whole arrays are zero.

    The derivative is that of reverse mode, with respect to gradients and parameters. Gradients
    that are all zero are not tried: a task without any is beyond help.
    """
    treedef: Any = jax.tree.structure(params)

    @jax.jit
    def derivative(grads, params):
        def total(grads, params):
            trees = treedef.unflatten(grads), treedef.unflatten(params)
            updates = _updates(transform, *trees, num_steps)
            return sum(jnp.sum(u, dtype=jnp.float32) for u in jax.tree.leaves(updates))

        return jax.grad(total, (0, 1))(grads, params)

    with jax.ensure_compile_time_eval():
        grads, ones, zeros = (
            _filled(params, fill) for fill in (_with_dead_units, np.ones, np.zeros)
        )
        found = [derivative(grads, ones)]
        moving = [i for i, slope in enumerate(found[0][0]) if np.any(slope)]
        for live in filter(None, (moving[::2], moving[1::2])):
            alternating = [
                (g, zero) if i in live else (zero, one)
                for i, (g, one, zero) in enumerate(zip(grads, ones, zeros, strict=True))
            ]
            found.append(derivative(*map(list, zip(*alternating, strict=True))))
        finite = all(np.all(np.isfinite(slope)) for slope in jax.tree.leaves(found))
    if not finite:
        raise ValueError(NOT_DIFFERENTIABLE)
