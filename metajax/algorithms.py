"""MAML, FOMAML and Reptile: each an inner loop, a meta-gradient and an objective."""

from __future__ import annotations

from typing import Any, TypedDict, Unpack

from jax.sharding import Mesh

from metajax.base import LossFn, MetaLearner, Objective, check_integer
from metajax.batches import Batches
from metajax.gradients import MetaGradient, first_order
from metajax.inner import inner_loop
from metajax.learner import meta_learner
from metajax.objectives import displacement, last_update, query_loss
from metajax.optimizers import LearnedOptimizer, Optimizer


class Options(TypedDict, total=False):
    """The keyword arguments that all algorithms share.

    Attributes:
      batches: the batch of each inner step: `full_batch()` by default, `cycle(size)`,
        `replacement(size)` or `per_step()`.
      carry: how the inner optimizer's state passes from task to task: `None` (each task starts
        from a fresh state), `"mean"` or `"serial"`, see `inner_loop`.
      task_chunk: tasks per `vmap`, see `meta_learner`.
      mesh: devices that share the tasks, see `meta_learner`.
    """

    batches: Batches | None
    carry: str | None
    task_chunk: int | None
    mesh: Mesh | None


def maml(
    loss: LossFn,
    inner_optimizer: Optimizer | LearnedOptimizer,
    outer_optimizer: Optimizer,
    *,
    num_steps: int = 1,
    meta_gradient: MetaGradient | None = None,
    **options: Unpack[Options],
) -> MetaLearner:
    r"""Model-agnostic meta-learning: an initialization from which a few steps adapt well.

    .. math::
      \min_\theta \; \mathbb{E}_i \, Q_i(\phi_i), \quad
      \phi_i = \theta - \alpha \nabla L_i(\theta) \; \text{(one step of SGD)}

    The meta-gradient differentiates through the inner gradient, so it has second derivatives.

    Args:
      loss: `(params, batch, rng) -> (scalar, metrics)`.
      inner_optimizer: any optax transformation, or a `LearnedOptimizer`. `optax.adam` is
        differentiable only with `eps_root`.
      outer_optimizer: any optax transformation.
      num_steps: adaptation steps; 0 is joint training on the query sets.
      meta_gradient: `second_order()` by default.
      **options: `batches`, `carry`, `task_chunk` and `mesh`, see `metajax.Options`.

    Raises:
      ValueError: for arguments of the wrong kind or that do not fit together.

    Example:

    >>> import jax, jax.numpy as jnp, optax, metajax
    >>> def loss(params, batch, rng):
    ...     x, y = batch
    ...     return jnp.mean((x @ params - y) ** 2), {}
    >>> learner = metajax.maml(loss, optax.sgd(0.01), optax.adam(1e-3), num_steps=5)
    >>> state = learner.init(jnp.zeros(2))
    >>> batch = jnp.ones((4, 10, 2)), jnp.ones((4, 10))
    >>> episodes = metajax.Episode(support=batch, query=batch)
    >>> state, metrics = jax.jit(learner.update)(state, episodes, jax.random.key(0))
    >>> metrics["support_loss"].shape
    (5,)

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      algorithm 1.
    """
    inner = {"num_steps": num_steps, "meta_gradient": meta_gradient}
    return build_learner(loss, inner_optimizer, inner, query_loss(loss), outer_optimizer, options)


def fomaml(
    loss: LossFn,
    inner_optimizer: Optimizer | LearnedOptimizer,
    outer_optimizer: Optimizer,
    *,
    num_steps: int = 1,
    tail: str | None = None,
    **options: Unpack[Options],
) -> MetaLearner:
    r"""First-order MAML: the query gradient at the adapted parameters, :math:`\nabla Q(\phi_T)`.

    Args:
      loss: `(params, batch, rng) -> (scalar, metrics)`.
      inner_optimizer: any optax transformation, or a `LearnedOptimizer`.
      outer_optimizer: any optax transformation.
      num_steps: adaptation steps.
      tail: `None` for the query gradient. Nichol et al. use the last update of the inner optimizer
        instead: on a mini-batch of the support like the other steps (`"shared"`), or on the query,
        whose examples are new to the inner loop (`"separate"`). See `last_update`.
      **options: `batches`, `carry`, `task_chunk` and `mesh`, see `metajax.Options`.

    Raises:
      ValueError: for arguments of the wrong kind or that do not fit together, such as a tail
        without steps.

    Example:

    >>> import optax, metajax
    >>> learner = metajax.fomaml(
    ...     lambda params, batch, rng: ((params - batch).sum() ** 2, {}),
    ...     optax.sgd(0.01), optax.sgd(1.0),
    ...     num_steps=4, batches=metajax.cycle(10), tail="shared")

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      section 5.2; the tails: Nichol et al., `On First-Order Meta-Learning Algorithms
      <https://arxiv.org/abs/1803.02999>`_, 2018, section 6.3.
    """
    num_steps = check_integer("fomaml: num_steps", num_steps, minimum=0)
    if tail not in (None, "shared", "separate"):
        raise ValueError(f'fomaml: tail must be None, "shared" or "separate", got {tail!r}.')
    if tail and num_steps == 0:
        raise ValueError("fomaml: the tail is the last step, so num_steps must not be 0.")
    inner: dict[str, Any] = {"num_steps": num_steps, "meta_gradient": first_order()}
    objective = query_loss(loss)
    if tail == "shared":
        objective = last_update(loss)
    elif tail == "separate":
        inner["num_steps"] -= 1
        carry = options.get("carry")
        last = inner_loop(loss, inner_optimizer, 1, meta_gradient=first_order(), carry=carry)
        objective = last_update(loss, tail=last)
    return build_learner(loss, inner_optimizer, inner, objective, outer_optimizer, options)


def reptile(
    loss: LossFn,
    inner_optimizer: Optimizer,
    outer_optimizer: Optimizer,
    *,
    num_steps: int,
    **options: Unpack[Options],
) -> MetaLearner:
    r"""Reptile: moves the initialization towards the adapted parameters.

    .. math:: \theta \leftarrow \theta + \epsilon \, \frac{1}{n} \sum_i (\phi_i - \theta)

    with `outer_optimizer=optax.sgd(epsilon)`. Any other optimizer treats :math:`\theta - \phi` as a
    gradient.

    Args:
      loss: `(params, batch, rng) -> (scalar, metrics)`.
      inner_optimizer: any optax transformation; the paper's is `optax.adam(lr, b1=0)`.
      outer_optimizer: any optax transformation.
      num_steps: adaptation steps, at least 1.
      **options: `batches` (`cycle(batch_size)` in the paper), `carry` (`"serial"` in the authors'
        code; `"mean"` is its parallel counterpart), `task_chunk` and `mesh`, see
        `metajax.Options`.

    Raises:
      ValueError: for arguments of the wrong kind or that do not fit together.

    Example:

    >>> import optax, metajax
    >>> learner = metajax.reptile(
    ...     lambda params, batch, rng: ((params - batch).sum() ** 2, {}),
    ...     optax.adam(1e-3, b1=0.0), optax.sgd(1.0),
    ...     num_steps=5, batches=metajax.cycle(10), carry="mean")

    References:
      Nichol et al., `On First-Order Meta-Learning Algorithms
      <https://arxiv.org/abs/1803.02999>`_, 2018, algorithm 2.
    """
    num_steps = check_integer("reptile: num_steps", num_steps)
    inner = {"num_steps": num_steps, "meta_gradient": first_order()}
    return build_learner(loss, inner_optimizer, inner, displacement(loss), outer_optimizer, options)


def build_learner(
    loss: LossFn,
    inner_optimizer: Optimizer | LearnedOptimizer,
    inner: dict[str, Any],
    objective: Objective,
    outer_optimizer: Optimizer,
    options: Options,
) -> MetaLearner:
    """Builds an algorithm; `inner` holds the arguments of `inner_loop` that are its own."""
    outer: dict[str, Any] = {**options}
    inner |= {name: outer.pop(name, None) for name in ("batches", "carry")}
    return meta_learner(
        inner_loop(loss, inner_optimizer, **inner), objective, outer_optimizer, **outer
    )
