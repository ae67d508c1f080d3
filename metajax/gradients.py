"""How the meta-gradient crosses the inner loop: the one switch between exact and cheap."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.scipy.sparse.linalg import cg

from metajax.base import Array, Params, PyTree, check_integer, inexact_leaves


def _identity(fn):
    return fn


def _reverse(fn: Callable[..., Any]) -> Callable[..., Any]:
    return jax.value_and_grad(fn, has_aux=True)


def _as_computed(adapted: Params, optimality: Callable[[Params], Params]) -> Params:
    return adapted


class MetaGradient(NamedTuple):
    """An engine: three hooks into `metajax.inner_loop`, each doing the plain thing by default.

    Attributes:
      gradient: makes the inner gradient. It takes `fn(params, *operands) -> (scalar, aux)` and
        returns a function of the same arguments that returns `((scalar, aux), gradient)`; the
        scalar is what the inner optimizer is told of the loss.
      step: transforms the function that takes one inner step.
      solution: `(adapted, optimality) -> adapted` attaches a derivative to the final parameters;
        `optimality(params)` is the inner gradient there, a function of all that is meta-learned.
      crosses_optimizer: whether derivatives cross the inner optimizer's treatment of gradients.
      implicit: whether the derivative is that of the inner problem's minimizer.
      forward: whether forward mode works as well: `jax.jvp`, `jax.linearize` and what is made of
        them, such as a trust-region step.
      value: whether derivatives cross the scalar that `gradient` returns.
    """

    gradient: Callable[[Callable[..., Any]], Callable[..., Any]] = _reverse
    step: Callable[[Callable], Callable] = _identity
    solution: Callable[[Params, Callable[[Params], Params]], Params] = _as_computed
    crosses_optimizer: bool = True
    implicit: bool = False
    forward: bool = True
    value: bool = True


def second_order(*, remat: bool = False) -> MetaGradient:
    r"""Differentiates through every inner step: the exact meta-gradient of MAML.

    With :math:`\phi_{t+1} = \phi_t - \alpha \nabla L(\phi_t)`, the meta-gradient is
    :math:`\prod_t (I - \alpha \nabla^2 L(\phi_t)) \, \nabla Q(\phi_T)`. It works under every JAX
    transformation, forward mode and `jax.linearize` included.

    Args:
      remat: recompute each inner step in the backward pass instead of storing its activations:
        memory per further step becomes the size of the parameters. Where activations are larger, as
        in a convolutional network, that can take less time as well; where they are smaller, as in a
        multi-layer perceptron on few examples, it is more memory (`python -m benchmarks.engines`).

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      section 2.2.
    """
    return MetaGradient(step=jax.checkpoint if remat else _identity)


def mixed_mode() -> MetaGradient:
    r"""The same exact meta-gradient, by forward-over-reverse products in the backward pass.

    The backward pass of an inner step needs :math:`v^\top \partial_\phi \nabla L` and
    :math:`v^\top \partial_\theta \nabla L` for a cotangent :math:`v`. Reverse mode over the inner
    gradient's own backward pass stores what both passes compute. By symmetry both products are the
    directional derivative of one gradient,

    .. math:: \frac{d}{d\epsilon} \nabla_{(\phi, \theta)} L(\phi + \epsilon v, \theta),

    which forward mode takes on the fly. An inner step stores its parameters alone, as with
    `second_order(remat=True)`. The loss may depend on anything that is meta-learned. A loss with a
    derivative rule of its own (`jax.custom_vjp`, or a `jax.custom_jvp` from outside JAX), whose
    products need not be symmetric, is differentiated as by `second_order(remat=True)`. Reverse mode
    only; the support losses and metrics reported by adaptation carry no derivative.

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
    return MetaGradient(gradient=_forward_over_reverse, forward=False, value=False)


def first_order() -> MetaGradient:
    r"""Stops the inner *gradients*: the meta-gradient is :math:`\nabla Q(\phi_T)`.

    The inner *updates* are not stopped, so learned step sizes still receive gradients; those of a
    line search are. Memory does not grow with the number of inner steps.

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      section 5.2; Nichol et al., `On First-Order Meta-Learning Algorithms
      <https://arxiv.org/abs/1803.02999>`_, 2018, section 2.
    """
    return MetaGradient(gradient=_stopped, crosses_optimizer=False)


def implicit(*, cg_steps: int = 5) -> MetaGradient:
    r"""Differentiates the minimizer instead of the path that led to it (iMAML).

    For :math:`\phi^* = \arg\min_\phi L(\phi) + \frac{\lambda}{2}\|\phi - \theta\|^2` the implicit
    function theorem gives :math:`d\phi^*/d\theta = (I + \nabla^2 L(\phi^*)/\lambda)^{-1}`, applied
    with conjugate gradients on Hessian-vector products. Time and memory of the backward pass do
    not depend on the number of inner steps, and what led to :math:`\phi^*` need not be
    differentiable. The inner loop must have come close to the minimizer for it to be exact, so an
    inner optimizer whose update depends on the parameters themselves, as weight decay does, is
    refused: it ends elsewhere. A line search (`optax.lbfgs`) is trusted to minimize what it is
    given. Parameters that do not adapt (`adapt_only`) are differentiated as what the minimizer
    depends on.

    Args:
      cg_steps: conjugate-gradient iterations at most; they end early at rounding error.

    Raises:
      ValueError: if `cg_steps` is not a positive integer.

    References:
      Rajeswaran et al., `Meta-Learning with Implicit Gradients
      <https://arxiv.org/abs/1909.04630>`_, 2019, section 3 and algorithm 2.
    """
    cg_steps = check_integer("implicit: cg_steps", cg_steps)

    def solution(adapted: Params, optimality: Callable[[Params], Params]) -> Params:
        adapted = jax.lax.stop_gradient(adapted)
        gradient = optimality(adapted)
        # Zero in value; its derivative is that of the optimality condition at fixed `adapted`.
        residual = jax.tree.map(lambda g: g - jax.lax.stop_gradient(g), gradient)
        dtypes = [p.dtype for p in jax.tree.leaves(adapted)]
        rounding = max(float(jnp.finfo(dtype).eps) for dtype in dtypes)

        # Vectors are of the widest type of the parameters, products of each parameter's own.
        def widened(v: Params) -> Params:
            return jax.tree.map(lambda x: x.astype(jnp.result_type(*dtypes)), v)

        def narrowed(v: Params) -> Params:
            return jax.tree.map(lambda x, p: x.astype(p.dtype), v, adapted)

        def hessian_vector_product(v: Params) -> Params:
            return widened(jax.jvp(optimality, (adapted,), (narrowed(v),))[1])

        # The solver refuses leaves that `vmap` maps along different axes, as it does the gradients
        # of `lax` convolutions; after an axis that comes and goes, all are mapped along the first.
        residual = jax.tree.map(lambda x: jnp.squeeze(x[None], 0), widened(residual))
        correction, _ = cg(hessian_vector_product, residual, tol=rounding, maxiter=cg_steps)
        return jax.tree.map(jnp.subtract, adapted, narrowed(correction))

    return MetaGradient(
        gradient=_stopped, solution=solution, crosses_optimizer=False, implicit=True
    )


def _stopped(fn: Callable[..., Any]) -> Callable[..., Any]:
    def gradient(params: Params, *operands: PyTree) -> tuple[tuple[Array, PyTree], Params]:
        (value, aux), grads = jax.value_and_grad(fn, has_aux=True)(params, *operands)
        value, grads = jax.lax.stop_gradient((value, grads))
        return (value, aux), grads

    return gradient


def _forward_over_reverse(fn: Callable[..., Any]) -> Callable[..., Any]:
    def gradient(params: Params, *operands: PyTree) -> tuple[tuple[Array, PyTree], Params]:
        # What the loss closes over may be meta-learned, or be mapped over: it becomes an operand.
        closed, closed_over, traced = _closed(fn, params, *operands)
        if _has_own_rule(traced):
            return jax.checkpoint(jax.value_and_grad(fn, has_aux=True))(params, *operands)
        value_and_aux, grads = _symmetric(closed, params, (*operands, closed_over))
        return jax.lax.stop_gradient(value_and_aux), grads

    return gradient


def without_derivative(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """`fn`, constant for every derivative: of its arguments and of what it closes over."""

    def constant(*args: PyTree) -> PyTree:
        closed, closed_over, _ = _closed(fn, *args)
        return closed(*jax.lax.stop_gradient((*args, closed_over)))

    return constant


def _has_own_rule(jaxpr: Any) -> bool:
    """Whether a derivative rule is met that may not be the true derivative.

    The `custom_jvp` rules of JAX and of this library are.
    """
    trusted = tuple(str(Path(file).parent) + os.sep for file in (jax.__file__, __file__))
    for eqn in equations(jaxpr):
        if eqn.primitive.name.startswith("custom_vjp_call"):
            return True
        if eqn.primitive.name.startswith("custom_jvp_call"):
            source = getattr(eqn.params["call_jaxpr"].jaxpr.debug_info, "func_src_info", None) or ""
            if not source.partition(" at ")[2].startswith(trusted):
                return True
    return False


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a program, those of the programs within it included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for leaf in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(leaf, "jaxpr", leaf)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def _closed(
    fn: Callable[..., PyTree], *args: PyTree
) -> tuple[Callable[..., PyTree], list[Array], Any]:
    """`fn` as a function of `(*args, closed_over)`, all arrays that it closes over, its jaxpr.

    `jax.closure_convert` would leave those that have no derivative, such as integers and keys, and
    a custom rule must not meet them where they are traced.
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
    return jax.value_and_grad(fn, has_aux=True)(params, *operands)


def _symmetric_forward(fn, params, operands):
    # Not by `_symmetric` again: wrong derivatives where this rule is differentiated within a scan.
    return jax.value_and_grad(fn, has_aux=True)(params, *operands), (params, operands)


def _symmetric_backward(fn, residuals, cotangents):
    params, operands = residuals
    leaves, treedef = jax.tree.flatten(operands)
    inexact = inexact_leaves(leaves)

    def scalar(params: Params, inexact: dict[int, Array]) -> Array:
        merged = [inexact.get(i, leaf) for i, leaf in enumerate(leaves)]
        return fn(params, *jax.tree.unflatten(treedef, merged))[0]

    _, (params_cotangent, products) = jax.jvp(
        lambda params: jax.grad(scalar, (0, 1))(params, inexact), (params,), (cotangents[1],)
    )
    operand_cotangents = [products.get(i) for i in range(len(leaves))]
    return params_cotangent, jax.tree.unflatten(treedef, operand_cotangents)


_symmetric.defvjp(_symmetric_forward, _symmetric_backward)
