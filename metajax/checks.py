"""Checks of numerical values for users to call. The rest of the core never reads array values."""

from __future__ import annotations

import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metajax import base
from metajax.arguments import adaptable
from metajax.base import Adapt, Array, Batch, Key, LossFn, MetaParams, Params, Stateful
from metajax.gradients import implicit
from metajax.optimizers import LearnedOptimizer, Optimizer, as_learned, only


def check_differentiable(
    optimizer: Optimizer | LearnedOptimizer, params: Params, *, num_steps: int = 10
) -> None:
    r"""Raises an error if an inner optimizer would turn a second-order meta-gradient into NaN.

    The optimizer's update :math:`u(g, \phi)` is differentiated with respect to the gradients
    :math:`g` and the parameters :math:`\phi`, at points where single units or whole arrays are
    zero or have a zero gradient. A dead unit has one, for example, and the square root in Adam has
    no derivative there. Gradients that are zero everywhere are not tried.

    Args:
      optimizer: any optax transformation, or a `LearnedOptimizer`.
      params: parameters with the shapes of those that adapt; their values do not matter.
      num_steps: the number of successive updates to try, because some rules change after a few.

    Raises:
      ValueError: if a derivative is not finite. The message names a remedy that works for the
        optimizer.

    Example:

    >>> import jax.numpy as jnp, optax, metajax
    >>> metajax.check_differentiable(optax.adam(1e-3, eps_root=1e-8), {"w": jnp.ones((3, 2))})
    >>> metajax.check_differentiable(optax.adam(1e-3), {"w": jnp.ones((3, 2))})
    Traceback (most recent call last):
    ...
    ValueError: the derivative of the inner optimizer's update is not finite where ...
    """
    learned = as_learned(optimizer)
    num_steps = base.check_integer("check_differentiable: num_steps", num_steps)
    params = adaptable(params)[0]
    inner = learned.init(params)
    moving = only(params, learned.moves)
    transform = learned.make(inner)
    if _derivative_is_finite(transform, moving, num_steps):
        return
    remedy = "choose first_order() or implicit(), which do not differentiate the update"
    if _derivative_is_finite(_with_eps_root(transform, 1e-8), moving, num_steps):
        remedy = f"pass eps_root, as in optax.adam(lr, eps_root=1e-8), or {remedy}"
    raise ValueError(
        "the derivative of the inner optimizer's update is not finite where a unit or an array is "
        "zero or has a zero gradient, so a dead unit would turn the second-order meta-gradient "
        f"into NaN: {remedy}."
    )


def check_symmetric(
    loss: LossFn, params: Params, batch: Batch, rng: Key, *, tolerance: float | None = None
) -> float:
    r"""Raises an error if `mixed_mode()` would be wrong for a loss.

    The engine assumes that the derivative :math:`H` of the loss's gradient is symmetric. A custom
    derivative rule that is not the true derivative, such as a reversed gradient, violates that.
    The check compares :math:`v^\top H u` and :math:`u^\top H v` for two random vectors.

    Args:
      loss: `(params, batch, rng) -> (scalar, metrics)`.
      params: the parameters at which the loss is differentiated.
      batch: a batch of one task.
      rng: a key for the loss and the two vectors.
      tolerance: the largest relative difference to accept, by default the fourth root of the
        rounding unit, 0.02 in float32.

    Returns:
      The relative difference, :math:`|v^\top H u - u^\top H v| / (\|H u\| \|v\| + \|H v\| \|u\|)`.

    Raises:
      ValueError: if it is above the tolerance, or not finite.

    Example:

    >>> import jax, jax.numpy as jnp, metajax
    >>> loss = lambda params, x, rng: (jnp.mean(jnp.tanh(x @ params["w"]) ** 2), {})
    >>> params, batch = {"w": jnp.ones(2)}, jnp.ones((4, 2))
    >>> metajax.check_symmetric(loss, params, batch, jax.random.key(0)) < 1e-4
    True

    References:
      Kemaev et al., `Scalable Meta-Learning via Mixed-Mode Differentiation
      <https://arxiv.org/abs/2505.00793>`_, 2025, section 3.
    """
    base.check_function("check_symmetric: loss", loss, "params, batch, rng")
    loss_rng, *rngs = base.split_key(rng, 3)
    stateful, (params, model) = isinstance(params, Stateful), adaptable(params)

    def value(params: Params) -> Array:
        return loss(Stateful(params, model) if stateful else params, batch, loss_rng)[0]

    u, v = (optax.tree.random_like(key, params) for key in rngs)

    @jax.jit
    def products(params: Params, u: Params, v: Params) -> tuple[Array, Array]:
        hu, hv = (jax.jvp(jax.grad(value), (params,), (x,))[1] for x in (u, v))
        scale = optax.tree.norm(hu) * optax.tree.norm(v) + optax.tree.norm(hv) * optax.tree.norm(u)
        return optax.tree.vdot(v, hu) - optax.tree.vdot(u, hv), scale

    difference, scale = map(float, products(params, u, v))
    relative = abs(difference) / scale if scale else abs(difference)
    if tolerance is None:
        tolerance = float(jnp.finfo(jnp.result_type(*jax.tree.leaves(params))).eps) ** 0.25
    if not relative <= tolerance:
        raise ValueError(
            f"the derivative of the loss's gradient is not symmetric: v'Hu and u'Hv differ by "
            f"{relative:.2g} of their size. Use second_order(remat=True) instead of mixed_mode()."
        )
    return relative


def check_minimizer(
    adapt: Adapt, meta_params: MetaParams, support: Batch, rng: Key, *, tolerance: float = 0.1
) -> float:
    r"""Raises an error if an inner loop ends too far from the minimizer for `implicit()`.

    The check compares the gradient of the proximal inner problem at the adapted parameters
    :math:`\phi` with that at the initialization :math:`\theta`. It is large after too few steps,
    and for an inner optimizer with another fixed point.

    Args:
      adapt: an inner loop with `implicit()`.
      meta_params: the parameters to start from.
      support: the support of one task.
      rng: a key for the inner loop.
      tolerance: the largest ratio of the two norms to accept.

    Returns:
      The ratio :math:`\|\nabla F(\phi)\| / \|\nabla F(\theta)\|`, with
      :math:`F(\phi) = L(\phi) + \frac{\lambda}{2} \|\phi - \theta\|^2`.

    Raises:
      ValueError: if the ratio is above the tolerance, or for an inner loop without `implicit()`.

    Example:

    >>> import jax, jax.numpy as jnp, optax, metajax
    >>> loss = lambda params, batch, rng: (jnp.mean((params - batch) ** 2), {})
    >>> learner = metajax.imaml(loss, optax.sgd(0.1), optax.adam(1e-3), num_steps=16)
    >>> metajax.check_minimizer(
    ...     learner.inner, metajax.MetaParams(jnp.zeros(())), jnp.ones(5), jax.random.key(0)) < 1e-3
    True

    References:
      Rajeswaran et al., `Meta-Learning with Implicit Gradients
      <https://arxiv.org/abs/1909.04630>`_, 2019, definition 1.
    """
    base.check_kind("check_minimizer: adapt", adapt, Adapt, "from inner_loop")
    if adapt.differentiates_steps or not adapt.num_steps:
        raise ValueError("check_minimizer is for inner loops with steps and implicit().")
    base.check_kind("meta_params", meta_params, MetaParams, "such as state.meta_params")
    start = base.named_leaves(base.split_state(meta_params.params)[0])
    norms: list[Array] = []

    def compare(adapted: Params, optimality: Any) -> Params:
        initial = jax.tree_util.tree_map_with_path(
            lambda path, _: jnp.asarray(start[jax.tree_util.keystr(path)]), adapted
        )
        norms.extend(optax.tree.norm(optimality(params)) for params in (adapted, initial))
        return adapted

    adapt.rebuild(meta_gradient=implicit()._replace(solution=compare)).apply(
        meta_params, support, rng
    )
    ratio = float(norms[0] / norms[1]) if norms[1] else float(norms[0])
    if not ratio <= tolerance:
        raise ValueError(
            f"the inner loop does not reach the minimizer that implicit() differentiates: the "
            f"gradient there is {ratio:.2g} of that at the start. Take more or larger steps, or an "
            "inner optimizer without a fixed point of its own, or second_order()."
        )
    return ratio


def _derivative_is_finite(transform: Optimizer, params: Params, num_steps: int) -> bool:
    treedef: Any = jax.tree.structure(params)
    extra = {"value": jnp.ones(()), "value_fn": lambda params: jnp.ones(())}

    def update(grads, opt_state, params):
        with_extra = optax.with_extra_args_support(transform)
        return with_extra.update(grads, opt_state, params, grad=grads, **extra)

    @jax.jit
    def derivative(grads, params):
        def total(grads, params):
            def body(opt_state, _):
                updates, opt_state = update(grads, opt_state, params)
                return opt_state, sum(
                    jnp.sum(u, dtype=jnp.float32) for u in jax.tree.leaves(updates)
                )

            grads, params = treedef.unflatten(grads), treedef.unflatten(params)
            return jax.lax.scan(body, transform.init(params), None, length=num_steps)[1].sum()

        return jax.grad(total, (0, 1))(grads, params)

    grads, ones, zeros = (
        [jnp.asarray(fill(np.shape(p)), jnp.result_type(p)) for p in jax.tree.leaves(params)]
        for fill in (_with_dead_units, np.ones, np.zeros)
    )
    found = [derivative(grads, ones)]
    moving = [i for i, slope in enumerate(found[0][0]) if np.any(slope)]
    for live in filter(None, (moving[::2], moving[1::2])):
        alternating = [
            (g, zero) if i in live else (zero, one)
            for i, (g, one, zero) in enumerate(zip(grads, ones, zeros, strict=True))
        ]
        found.append(derivative(*map(list, zip(*alternating, strict=True))))
    return all(np.all(np.isfinite(slope)) for slope in jax.tree.leaves(found))


def _with_dead_units(shape: tuple[int, ...]) -> np.ndarray:
    """Gradients that are zero for the first unit on every axis and nonzero elsewhere."""
    grad = np.linspace(1.0, 2.0, int(np.prod(shape))).reshape(shape)
    for axis, size in enumerate(shape):
        if size > 1:
            np.moveaxis(grad, axis, 0)[0] = 0.0
    return grad


def _with_eps_root(part: Any, eps_root: float) -> Any:
    """A copy with another `eps_root`, which optax keeps in the closures of its functions."""
    if isinstance(part, optax.GradientTransformation):
        return optax.GradientTransformation(part.init, _with_eps_root(part.update, eps_root))
    if isinstance(part, tuple | list) and not hasattr(part, "_fields"):
        return type(part)(_with_eps_root(each, eps_root) for each in part)
    if not isinstance(part, types.FunctionType) or not part.__closure__:
        return part
    cells = []
    for name, cell in zip(part.__code__.co_freevars, part.__closure__, strict=True):
        content = eps_root if name == "eps_root" else _with_eps_root(cell.cell_contents, eps_root)
        cells.append(types.CellType(content))
    copy = types.FunctionType(
        part.__code__, part.__globals__, part.__name__, part.__defaults__, tuple(cells)
    )
    copy.__kwdefaults__ = part.__kwdefaults__
    return copy
