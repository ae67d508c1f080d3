"""Learned inner optimizers with structure: curvature by mode, steps that a network generates."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metajax import base
from metajax.base import Array, Params, PyTree
from metajax.optimizers import LearnedOptimizer, Optimizer


def meta_curvature(learning_rate: float) -> LearnedOptimizer:
    r"""SGD on gradients that learned matrices transform along each mode (Meta-Curvature).

    For the gradient :math:`G` of a kernel with inputs :math:`i`, outputs :math:`o` and, for
    convolutions, places :math:`f` in its window,

    .. math::
      \phi \leftarrow \phi - \alpha \, G \times_f M_f \times_i M_i \times_o M_o, \quad
      (G \times_o M_o)_{f i o} = \sum_{o'} (M_o)_{o o'} \, G_{f i o'}

    The outer loop learns the matrices, which start as identities. The gradient of a vector or a
    scalar is multiplied entry by entry.

    Args:
      learning_rate: the step size :math:`\alpha`, not learned.

    Returns:
      An inner optimizer. Its hyper-parameters are, for each array, a dict of `"in"` and `"out"`,
      for convolutions also `"window"`, or of `"scale"` for vectors and scalars. Kernels are
      `[..., inputs, outputs]`, as in Flax and Haiku.

    Raises:
      ValueError: if `learning_rate` is not a finite number.

    Example:

    >>> import jax, jax.numpy as jnp, optax, metajax
    >>> loss = lambda params, batch, rng: (jnp.mean((params["w"] - batch) ** 2), {})
    >>> learner = metajax.maml(loss, metajax.meta_curvature(0.1), optax.adam(1e-3))
    >>> inner = learner.init({"w": jnp.zeros((3, 3, 2, 4))}).meta_params.inner
    >>> jax.tree.map(jnp.shape, inner["w"])
    {'in': (2, 2), 'out': (4, 4), 'window': (9, 9)}

    References:
      Park and Oliva, `Meta-Curvature <https://arxiv.org/abs/1902.03356>`_, 2019, section 3.1.
    """
    base.check_number("meta_curvature: learning_rate", learning_rate, "(-inf, inf)")

    def identities(x: Array) -> dict[str, Array]:
        if x.ndim < 2:
            return {"scale": jnp.ones_like(x)}
        sizes = {"in": x.shape[-2], "out": x.shape[-1]}
        if x.ndim > 2:
            sizes["window"] = int(np.prod(x.shape[:-2]))
        return {name: jnp.eye(size, dtype=x.dtype) for name, size in sizes.items()}

    def curved(gradient: Array, by: dict[str, Array]) -> Array:
        if "scale" in by:
            return by["scale"] * gradient
        g = jnp.einsum("...io,ji,po->...jp", gradient, by["in"], by["out"])
        if "window" in by:
            flat = g.reshape(-1, *g.shape[-2:])
            g = jnp.einsum("fio,gf->gio", flat, by["window"]).reshape(g.shape)
        return g

    def make(matrices: PyTree) -> Optimizer:
        return optax.stateless(
            lambda grads, params: jax.tree.map(
                lambda g, by: -learning_rate * curved(g, by), grads, matrices
            )
        )

    return LearnedOptimizer(lambda params: jax.tree.map(identities, params), make)


def alfa(
    learning_rate: float, num_steps: int, *, weight_decay: float = 5e-4, seed: int = 0
) -> LearnedOptimizer:
    r"""SGD whose step sizes and weight decays a network generates for every task and step (ALFA).

    .. math::
      \phi_l \leftarrow (1 - b_{l,t} \, \beta_l) \, \phi_l - a_{l,t} \, \alpha_l \nabla_l L, \quad
      (\alpha, \beta) = g_\psi(\bar\nabla_1, \dots, \bar\nabla_n, \bar\phi_1, \dots, \bar\phi_n)

    for each array :math:`l` and step :math:`t`. The network :math:`g` sees the means of all
    gradients and parameters; it has one hidden layer of the size of its input. The outer loop
    learns :math:`a`, :math:`b` and :math:`g`. It starts with :math:`\alpha = \beta = 1`,
    :math:`a` the learning rate and :math:`b` the learning rate times the weight decay. Steps beyond
    `num_steps` use the last :math:`a` and :math:`b`.

    Args:
      learning_rate: the initial step size.
      num_steps: the number of inner steps with :math:`a` and :math:`b` of their own.
      weight_decay: the initial decay, as a fraction of the step size.
      seed: of the initial hidden layer.

    Raises:
      ValueError: if `learning_rate` or `weight_decay` is not a finite number or `num_steps` not a
        positive integer.

    Example:

    >>> import jax.numpy as jnp, optax, metajax
    >>> loss = lambda params, batch, rng: (jnp.mean((params["w"] - batch) ** 2), {})
    >>> learner = metajax.maml(loss, metajax.alfa(0.1, 5), optax.adam(1e-3), num_steps=5)
    >>> learner.init({"w": jnp.zeros(3)}).meta_params.inner["rates"].shape
    (5, 1)

    References:
      Baik et al., `Meta-Learning with Adaptive Hyperparameters
      <https://arxiv.org/abs/2011.00209>`_, 2020, equations 5 and 6. The factors :math:`a` and
      :math:`b` and the size of the network follow the authors' code.
    """
    num_steps = base.check_integer("alfa: num_steps", num_steps)
    base.check_number("alfa: learning_rate", learning_rate, "(-inf, inf)")
    base.check_number("alfa: weight_decay", weight_decay, "(-inf, inf)")

    def init(params: Params) -> dict[str, Array]:
        n = len(jax.tree.leaves(params))
        hidden = jax.nn.initializers.lecun_normal()(jax.random.key(seed), (2 * n, 2 * n))
        return {
            "hidden": hidden,
            "hidden_bias": jnp.zeros(2 * n),
            "output": jnp.zeros((2 * n, 2 * n)),
            "output_bias": jnp.ones(2 * n),
            "rates": jnp.full((num_steps, n), learning_rate),
            "decays": jnp.full((num_steps, n), learning_rate * weight_decay),
        }

    def make(learned: dict[str, Array]) -> Optimizer:
        def update(grads: Params, step: Array, params: Any = None) -> tuple[Params, Array]:
            leaves, treedef = jax.tree.flatten(grads)
            values = jax.tree.leaves(params)
            seen = jnp.stack([jnp.mean(x) for x in (*leaves, *values)])
            hidden = jax.nn.relu(seen @ learned["hidden"] + learned["hidden_bias"])
            generated = hidden @ learned["output"] + learned["output_bias"]
            alpha, beta = jnp.split(generated, 2)
            at = jnp.minimum(step, num_steps - 1)
            alpha, beta = alpha * learned["rates"][at], beta * learned["decays"][at]
            moves = [
                -(a * g + b * p).astype(g.dtype)
                for a, b, g, p in zip(alpha, beta, leaves, values, strict=True)
            ]
            return jax.tree.unflatten(treedef, moves), step + 1

        return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)

    return LearnedOptimizer(init, make, per_task=True)
