"""How the meta-gradient crosses the inner loop: exactly or approximately, and at what cost."""

from __future__ import annotations

import contextlib
import functools
import os
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.custom_derivatives import SymbolicZero, custom_vjp_primal_tree_values
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.extend.linear_util import WrappedFun
from jax.scipy.sparse.linalg import cg

from metajax.base import Array, Params, PyTree, check_integer, inexact_leaves

_reverse = functools.partial(jax.value_and_grad, has_aux=True)


class MetaGradient(NamedTuple):
    """An engine: what `metajax.inner_loop` does for derivatives; the default is plain reverse mode.

    Attributes:
      gradient: makes the inner gradient. It takes `fn(params, *operands) -> (scalar, aux)` and
        returns a function of the same arguments with the result `((scalar, aux), gradient)`. The
        inner optimizer receives the scalar as the value of the loss.
      remat: whether the backward pass recomputes each inner step; with `None` the inner loop
        chooses, as `second_order()` describes.
      solution: `(adapted, optimality) -> adapted` attaches a derivative to the final parameters.
        `optimality(params)` is the inner gradient at `params`; it also depends on all
        meta-learned parameters.
      crosses_optimizer: whether the meta-gradient differentiates the inner optimizer's update with
        respect to the inner gradient.
      implicit: whether the meta-gradient is that of the inner problem's minimizer.
      forward: whether forward mode works: `jax.jvp`, `jax.linearize` and their users, such as the
        trust-region step of `rl.maml_trpo`.

    Example, `first_order()` with inner steps that the backward pass recomputes:

    >>> import metajax
    >>> engine = metajax.first_order()._replace(remat=True)
    """

    gradient: Callable[[Callable[..., Any]], Callable[..., Any]] = _reverse
    remat: bool | None = False
    solution: Callable[[Params, Callable[[Params], Params]], Params] = lambda adapted, _: adapted
    crosses_optimizer: bool = True
    implicit: bool = False
    forward: bool = True


def second_order(*, remat: bool | None = None) -> MetaGradient:
    r"""Differentiates through every inner step: the exact meta-gradient of MAML.

    With :math:`\phi_{t+1} = \phi_t - \alpha \nabla L(\phi_t)`, the meta-gradient is
    :math:`\prod_t (I - \alpha \nabla^2 L(\phi_t)) \, \nabla Q(\phi_T)`. It works under every JAX
    transformation, including forward mode and `jax.linearize`.

    Args:
      remat: whether the backward pass recomputes each inner step instead of reading what was
        stored of it. Each further step then costs memory of the size of the parameters. A
        convolutional network has larger activations than that, so it saves memory. A multi-layer
        perceptron on few examples has smaller ones, so it costs memory and time. By default a CPU
        recomputes steps of a loss whose activations take four times the memory of the parameters,
        if they are ten or more, or if the activations of all of them are 256 MB or more: a third of
        the memory or less, and at most a sixth more time (`python -m benchmarks.remat`). The log
        says so. Other devices store. The numbers are the same but for rounding.

    Raises:
      ValueError: if `remat` is neither a bool nor `None`.

    Example:

    >>> import jax.numpy as jnp, optax, metajax
    >>> loss = lambda params, batch, rng: (jnp.mean((params - batch) ** 2), {})
    >>> learner = metajax.maml(
    ...     loss, optax.sgd(0.1), optax.adam(1e-3), num_steps=5,
    ...     meta_gradient=metajax.second_order(remat=True))

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      section 2.2.
    """
    if remat is not None and not isinstance(remat, bool):
        raise ValueError(f"second_order: remat must be True, False or None, got {remat!r}.")
    return MetaGradient(remat=remat)


def mixed_mode() -> MetaGradient:
    r"""The exact meta-gradient, by forward-over-reverse products in the backward pass.

    The backward pass of an inner step needs :math:`v^\top \partial_\phi \nabla L` and
    :math:`v^\top \partial_\theta \nabla L` for a cotangent :math:`v`. Reverse mode over reverse
    mode would store the intermediate results of both passes. Because second derivatives are
    symmetric, both products are directional derivatives of one gradient,

    .. math:: \frac{d}{d\epsilon} \nabla_{(\phi, \theta)} L(\phi + \epsilon v, \theta),

    and forward mode computes them without storing anything. An inner step stores only its
    parameters, as with `second_order(remat=True)`. The loss may depend on any meta-learned
    parameter. If the loss has a custom derivative rule (`jax.custom_vjp`, or a `jax.custom_jvp`
    from outside JAX), the products need not be symmetric, and it is differentiated as by
    `second_order(remat=True)`. `check_symmetric` tests a loss.

    Only reverse mode works, and the support metrics that adaptation reports have no derivative.

    Example:

    >>> import jax.numpy as jnp, optax, metajax
    >>> loss = lambda params, batch, rng: (jnp.mean((params - batch) ** 2), {})
    >>> learner = metajax.maml(
    ...     loss, optax.sgd(0.1), optax.adam(1e-3), num_steps=20,
    ...     meta_gradient=metajax.mixed_mode())

    References:
      Kemaev et al., `Scalable Meta-Learning via Mixed-Mode Differentiation
      <https://arxiv.org/abs/2505.00793>`_, 2025, section 3.
    """
    return MetaGradient(gradient=_forward_over_reverse, forward=False)


def first_order() -> MetaGradient:
    r"""Stops the inner *gradients*: the meta-gradient is :math:`\nabla Q(\phi_T)`.

    The inner *updates* are not stopped, so learned step sizes still receive gradients, and neither
    are the support losses, so that `online_loss` has a gradient. The updates of a line search
    (`optax.lbfgs`) are stopped. Memory does not grow with the number of inner steps, unless the
    objective takes the support losses. The inner gradients are constants at every order, so the
    derivative of a run in its learning rates lacks theirs too; `second_order()` has it.

    Example:

    >>> import jax.numpy as jnp, optax, metajax
    >>> loss = lambda params, batch, rng: (jnp.mean((params - batch) ** 2), {})
    >>> learner = metajax.meta_sgd(loss, optax.adam(1e-3), meta_gradient=metajax.first_order())

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      section 5.2; Nichol et al., `On First-Order Meta-Learning Algorithms
      <https://arxiv.org/abs/1803.02999>`_, 2018, section 2.
    """
    return MetaGradient(gradient=_gradient_stopped, crosses_optimizer=False)


def implicit(*, cg_steps: int = 5) -> MetaGradient:
    r"""Differentiates the minimizer of the inner problem instead of the path to it (iMAML).

    For :math:`\phi^* = \operatorname{argmin}_\phi L(\phi) + \frac{\lambda}{2}\|\phi - \theta\|^2`
    the implicit function theorem gives :math:`d\phi^*/d\theta = (I + \nabla^2
    L(\phi^*)/\lambda)^{-1}`, applied with conjugate gradients on Hessian-vector products. Time and
    memory of the backward pass do not depend on the number of inner steps, and the inner optimizer
    need not be differentiable.

    The result is exact only at the minimizer, so the inner loop must come close to it. An inner
    optimizer whose update depends on the parameters themselves, as weight decay does, has another
    limit and is refused. A line search (`optax.lbfgs`) is assumed to minimize its objective.
    Parameters that do not adapt (`adapt_only`) receive the derivative of the minimizer with respect
    to them.

    Args:
      cg_steps: the maximal number of conjugate-gradient iterations; they stop early at rounding
        error.

    Raises:
      ValueError: if `cg_steps` is not a positive integer.

    Example:

    >>> import jax.numpy as jnp, optax, metajax
    >>> loss = lambda params, batch, rng: (jnp.mean((params - batch) ** 2), {})
    >>> adapt = metajax.inner_loop(
    ...     loss, optax.sgd(0.1), num_steps=16, proximal=2.0, meta_gradient=metajax.implicit())

    References:
      Rajeswaran et al., `Meta-Learning with Implicit Gradients
      <https://arxiv.org/abs/1909.04630>`_, 2019, section 3 and algorithm 2.
    """
    cg_steps = check_integer("implicit: cg_steps", cg_steps)

    def solution(adapted: Params, optimality: Callable[[Params], Params]) -> Params:
        dtypes = [p.dtype for p in jax.tree.leaves(adapted)]
        rounding = max(float(jnp.finfo(dtype).eps) for dtype in dtypes)
        # Conjugate gradients run in the widest type of the parameters, and Hessian-vector products
        # in each parameter's own type.
        widened = functools.partial(optax.tree.cast, dtype=jnp.result_type(*dtypes))
        narrowed = functools.partial(optax.tree.cast_like, other_tree=adapted)

        def conjugate_gradients(product: Callable[[Params], Params], v: Params) -> Params:
            # `vmap` maps the gradients of `lax` convolutions along different axes, which the solver
            # refuses. Adding and removing a leading axis moves all mapped axes to the front.
            v = jax.tree.map(lambda x: jnp.squeeze(x[None], 0), v)
            return cg(product, v, tol=rounding, maxiter=cg_steps)[0]

        def solve(product: Callable[[Params], Params], v: Params) -> Params:
            # `cg` alone cannot be transposed within the derivative of a custom rule.
            return narrowed(
                jax.lax.custom_linear_solve(
                    lambda v: widened(product(narrowed(v))),
                    widened(v),
                    conjugate_gradients,
                    symmetric=True,
                )
            )

        adapted = jax.lax.stop_gradient(adapted)
        closed, closed_over, _ = _closed(optimality, adapted)
        return _root(closed, solve, adapted, closed_over)

    return MetaGradient(
        gradient=_stopped, solution=solution, crosses_optimizer=False, implicit=True
    )


def _stopped(fn: Callable[..., Any]) -> Callable[..., Any]:
    def gradient(params: Params, *operands: PyTree) -> tuple[tuple[Array, PyTree], Params]:
        (value, aux), grads = _reverse(fn)(params, *operands)
        value, grads = jax.lax.stop_gradient((value, grads))
        return (value, aux), grads

    return gradient


def _gradient_stopped(fn: Callable[..., Any]) -> Callable[..., Any]:
    def gradient(params: Params, *operands: PyTree) -> tuple[tuple[Array, PyTree], Params]:
        (value, aux), grads = _reverse(fn)(params, *operands)
        aux, grads = jax.lax.stop_gradient((aux, grads))
        return (value, aux), grads

    return gradient


def _forward_over_reverse(fn: Callable[..., Any]) -> Callable[..., Any]:
    def gradient(params: Params, *operands: PyTree) -> tuple[tuple[Array, PyTree], Params]:
        # Arrays in the closure of the loss may be meta-learned or mapped, so they become operands.
        closed, closed_over, traced = _closed(fn, params, *operands)
        if _has_own_rule(traced):
            return jax.checkpoint(_reverse(fn))(params, *operands)
        (value, aux), grads = _symmetric(closed, params, (*operands, closed_over))
        return (value, jax.lax.stop_gradient(aux)), grads

    return gradient


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _root(fn: Callable[..., Params], solve: Callable[..., Params], root: Params, operands: PyTree):
    """The root of `fn(root, operands)`, with its derivative in the operands, to any order."""
    return root


@_root.defjvp
def _root_jvp(fn, solve, primals, tangents):
    # A derivative of this derivative depends on the root as well, so it is not a constant here.
    root, operands = _root(fn, solve, *primals), primals[1]
    _, residual = jax.jvp(functools.partial(fn, root), (operands,), (tangents[1],))

    def product(v):
        return jax.jvp(lambda root: fn(root, operands), (root,), (v,))[1]

    return root, jax.tree.map(jnp.negative, solve(product, residual))


def without_derivative(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """`fn` without derivatives with respect to its arguments and to the arrays in its closure."""

    def constant(*args: PyTree) -> PyTree:
        closed, closed_over, _ = _closed(fn, *args)
        return closed(*jax.lax.stop_gradient((*args, closed_over)))

    return constant


def _has_own_rule(jaxpr: Any) -> bool:
    """Whether a program has a custom derivative rule that need not be the true derivative.

    The `custom_jvp` rules that JAX and this library have for functions of their own are trusted.
    """
    trusted = tuple(str(Path(file).parent) + os.sep for file in (jax.__file__, __file__))

    for eqn in equations(jaxpr):
        if eqn.primitive.name.startswith("custom_vjp_call"):
            return True
        if eqn.primitive.name.startswith("custom_jvp_call"):
            debug_info = eqn.params["call_jaxpr"].jaxpr.debug_info
            name, _, place = (getattr(debug_info, "func_src_info", None) or "").partition(" at ")
            files = place, *_files(eqn.params["jvp_jaxpr_fun"])
            # The derivative of a root is only as good as the solver that the user gave.
            if name == "_custom_root" or not all(file.startswith(trusted) for file in files):
                return True
    return False


def _files(fn: Any, depth: int = 6) -> Iterator[str]:
    """The files of a function and of the functions in its closure."""
    if isinstance(fn, WrappedFun):  # a rule within JAX's own wrapper
        fn = fn.f
    if isinstance(fn, tuple | list):
        for each in fn:
            yield from _files(each, depth)
    elif isinstance(fn, types.FunctionType) and depth:
        yield fn.__code__.co_filename
        for cell in fn.__closure__ or ():
            with contextlib.suppress(ValueError):  # an empty cell
                yield from _files(cell.cell_contents, depth - 1)


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a program, including those of nested programs."""
    for eqn in jaxpr.eqns:
        yield eqn
        for leaf in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(leaf, "jaxpr", leaf)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def _closed(
    fn: Callable[..., PyTree], *args: PyTree
) -> tuple[Callable[..., PyTree], list[Array], Any]:
    """Turns closures into arguments: a function of `(*args, arrays)`, the arrays, its jaxpr.

    `jax.closure_convert` would leave arrays without a derivative, such as integers and keys, in the
    closure, and a custom rule must not close over traced arrays.
    """
    traced, result = jax.make_jaxpr(fn, return_shape=True)(*args)
    treedef = jax.tree.structure(result)

    def closed(*args_and_closed_over: PyTree) -> PyTree:
        *args, closed_over = args_and_closed_over
        run = jaxpr_as_fun(ClosedJaxpr(traced.jaxpr, closed_over))
        return jax.tree.unflatten(treedef, run(*jax.tree.leaves(args)))

    return closed, traced.consts, traced.jaxpr


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _symmetric(fn: Callable[..., Any], params: Params, operands: PyTree) -> tuple[Any, Params]:
    return _reverse(fn)(params, *operands)


def _symmetric_forward(fn, params, operands):
    # With `symbolic_zeros` every leaf tells whether it is differentiated.
    params, operands = custom_vjp_primal_tree_values((params, operands))
    # Calling `_symmetric` here would give wrong derivatives of this rule within a scan.
    return _reverse(fn)(params, *operands), (params, operands)


def _symmetric_backward(fn, residuals, cotangents):
    params, operands = residuals
    leaves, treedef = jax.tree.flatten(operands)
    inexact = inexact_leaves(leaves)

    def scalar(params: Params, inexact: dict[int, Array]) -> Array:
        merged = [inexact.get(i, leaf) for i, leaf in enumerate(leaves)]
        return fn(params, *jax.tree.unflatten(treedef, merged))[0]

    (value_cotangent, _), direction = cotangents
    direction = jax.tree.map(
        lambda x, p: jnp.zeros_like(p) if isinstance(x, SymbolicZero) else x, direction, params
    )
    gradients, products = jax.jvp(
        lambda params: jax.grad(scalar, (0, 1))(params, inexact), (params,), (direction,)
    )
    if not isinstance(value_cotangent, SymbolicZero):
        # The gradient itself is the derivative of the value.
        products = jax.tree.map(
            lambda p, g: p + value_cotangent.astype(p.dtype) * g, products, gradients
        )
    params_cotangent, operand_cotangents = products
    cotangent_leaves = [operand_cotangents.get(i) for i in range(len(leaves))]
    return params_cotangent, jax.tree.unflatten(treedef, cotangent_leaves)


_symmetric.defvjp(_symmetric_forward, _symmetric_backward, symbolic_zeros=True)
