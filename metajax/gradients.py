"""How the meta-gradient crosses the inner loop: the one switch between exact and cheap."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg

from metajax.base import Params, PyTree


def _identity(fn):
    return fn


def _as_computed(adapted: Params, optimality: Callable[[Params], Params]) -> Params:
    del optimality
    return adapted


class MetaGradient(NamedTuple):
    """An engine: three hooks into `metajax.inner_loop`, each doing nothing by default.

    Attributes:
      gradient: transforms the inner gradients before the inner optimizer sees them.
      step: transforms the function that takes one inner step.
      solution: `(adapted, optimality) -> adapted` attaches a derivative to the final parameters;
        `optimality(params)` is the inner gradient there, a function of all that is meta-learned.
      crosses_optimizer: whether derivatives cross the inner optimizer's treatment of gradients.
      implicit: whether the derivative is that of the inner problem's minimizer.
    """

    gradient: Callable[[PyTree], PyTree] = _identity
    step: Callable[[Callable], Callable] = _identity
    solution: Callable[[Params, Callable[[Params], Params]], Params] = _as_computed
    crosses_optimizer: bool = True
    implicit: bool = False


def second_order(*, remat: bool = False) -> MetaGradient:
    r"""Differentiates through every inner step: the exact meta-gradient of MAML.

    With :math:`\phi_{t+1} = \phi_t - \alpha \nabla L(\phi_t)`, the meta-gradient is
    :math:`\prod_t (I - \alpha \nabla^2 L(\phi_t)) \, \nabla Q(\phi_T)`. It works under every JAX
    transformation, forward mode and `jax.linearize` included.

    Args:
      remat: recompute each inner step in the backward pass instead of storing its activations:
        memory per further step falls to about the size of the parameters.

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      section 2.2.
    """
    return MetaGradient(step=jax.checkpoint if remat else _identity)


def first_order() -> MetaGradient:
    r"""Stops the inner *gradients*: the meta-gradient is :math:`\nabla Q(\phi_T)`.

    The inner *updates* are not stopped, so learned step sizes still receive gradients. Memory
    does not grow with the number of inner steps.

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      section 5.2; Nichol et al., `On First-Order Meta-Learning Algorithms
      <https://arxiv.org/abs/1803.02999>`_, 2018, section 2.
    """
    return MetaGradient(gradient=jax.lax.stop_gradient, crosses_optimizer=False)


def implicit(*, cg_steps: int = 5) -> MetaGradient:
    r"""Differentiates the minimizer instead of the path that led to it (iMAML).

    For :math:`\phi^* = \arg\min_\phi L(\phi) + \frac{\lambda}{2}\|\phi - \theta\|^2` the implicit
    function theorem gives :math:`d\phi^*/d\theta = (I + \nabla^2 L(\phi^*)/\lambda)^{-1}`, applied
    with conjugate gradients on Hessian-vector products. Time and memory of the backward pass do
    not depend on the number of inner steps, and what led to :math:`\phi^*` need not be
    differentiable. The inner loop must have come close to the minimizer for it to be exact.

    Args:
      cg_steps: conjugate-gradient iterations at most; they end early at rounding error.

    Raises:
      ValueError: if `cg_steps` is not a positive integer.

    References:
      Rajeswaran et al., `Meta-Learning with Implicit Gradients
      <https://arxiv.org/abs/1909.04630>`_, 2019, section 3 and algorithm 2.
    """
    if not isinstance(cg_steps, int) or cg_steps < 1:
        raise ValueError(f"implicit: cg_steps must be a positive integer, got {cg_steps!r}.")

    def solution(adapted: Params, optimality: Callable[[Params], Params]) -> Params:
        adapted = jax.lax.stop_gradient(adapted)
        gradient = optimality(adapted)
        # Zero in value; its derivative is that of the optimality condition at fixed `adapted`.
        residual = jax.tree.map(lambda g: g - jax.lax.stop_gradient(g), gradient)

        def hessian_vector_product(v: Params) -> Params:
            return jax.jvp(optimality, (adapted,), (v,))[1]

        dtype = jnp.result_type(*jax.tree.leaves(adapted))
        correction, _ = cg(
            hessian_vector_product, residual, tol=float(jnp.finfo(dtype).eps), maxiter=cg_steps
        )
        return jax.tree.map(jnp.subtract, adapted, correction)

    return MetaGradient(
        gradient=jax.lax.stop_gradient, solution=solution, crosses_optimizer=False, implicit=True
    )
