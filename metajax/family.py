"""Relatives of MAML, with other objectives, other meta-gradients or other adapting parameters."""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp

from metajax import base, optimizers
from metajax.algorithms import Options, build_learner
from metajax.base import Array, Episode, Key, LossFn, MetaLearner, MetaState, Metrics
from metajax.gradients import MetaGradient, first_order, implicit, second_order
from metajax.learner import check_state
from metajax.objectives import multi_step_query_loss, query_loss
from metajax.optimizers import LearnedOptimizer, Optimizer, PathPredicate


def maml_plus_plus(
    loss: LossFn,
    inner_optimizer: Optimizer | LearnedOptimizer,
    outer_optimizer: Optimizer,
    *,
    num_steps: int = 5,
    annealed_updates: int,
    first_order_updates: int = 0,
    meta_gradient: MetaGradient | None = None,
    **options: Unpack[Options],
) -> MetaLearner:
    r"""MAML++: MAML with a weighted sum of the query losses after all steps as its objective.

    .. math:: \sum_t w_t Q(\phi_t), \quad w_t = \frac{1 - p}{T} \; (t < T), \quad
      w_T = \frac{1 - p}{T} + p

    with :math:`p` growing from 0 to 1 over the first `annealed_updates` meta-updates. The other
    parts of the method are arguments: `learned_per_step_sizes` for step sizes per array and step,
    `nn.conv_per_step` with `count_steps` for normalizations per step, and
    `optax.cosine_decay_schedule` for the outer learning rate.

    Args:
      loss: `(params, batch, rng) -> (scalar, metrics)`.
      inner_optimizer: the paper's is `learned_per_step_sizes(learning_rate, num_steps)`.
      outer_optimizer: any optax transformation.
      num_steps: adaptation steps, at least 1.
      annealed_updates: the number of meta-updates until only the last step counts; with 0 only it
        counts from the start.
      first_order_updates: the number of first-order meta-updates at the start.
      meta_gradient: the meta-gradient of all later updates, `second_order()` by default.
      **options: `batches`, `carry`, `task_chunk` and `mesh`, see `metajax.Options`.

    Raises:
      ValueError: for arguments of the wrong kind or that do not fit together.

    Example:

    >>> import jax.numpy as jnp, optax, metajax
    >>> loss = lambda params, batch, rng: (jnp.mean((params["w"] - batch) ** 2), {})
    >>> learner = metajax.maml_plus_plus(
    ...     loss, metajax.learned_per_step_sizes(0.1, 5), optax.adam(1e-3),
    ...     num_steps=5, annealed_updates=5_000)

    References:
      Antoniou et al., `How to train your MAML <https://arxiv.org/abs/1810.09502>`_, 2019,
      section 4.
    """
    num_steps = base.check_integer("maml_plus_plus: num_steps", num_steps)
    annealed = base.check_integer("maml_plus_plus: annealed_updates", annealed_updates, 0)
    first = base.check_integer("maml_plus_plus: first_order_updates", first_order_updates, 0)

    exact = second_order() if meta_gradient is None else meta_gradient

    def learner(engine: MetaGradient, step: Array) -> MetaLearner:
        progress = jnp.minimum(step / annealed, 1.0) if annealed else jnp.ones(())
        weights = jnp.full(num_steps, (1 - progress) / num_steps).at[-1].add(progress)
        inner = {"num_steps": num_steps, "meta_gradient": engine}
        objective = multi_step_query_loss(loss, weights)
        return build_learner(loss, inner_optimizer, inner, objective, outer_optimizer, options)

    fixed = learner(exact, jnp.zeros(()))

    def update(state: MetaState, episodes: Episode, rng: Key) -> tuple[MetaState, Metrics]:
        check_state(state)

        def by(engine: MetaGradient) -> tuple[MetaState, Metrics]:
            return learner(engine, state.step).update(state, episodes, rng)

        if not first:
            return by(exact)
        return jax.lax.cond(state.step < first, lambda: by(first_order()), lambda: by(exact))

    return fixed._replace(update=update)


def imaml(
    loss: LossFn,
    inner_optimizer: Optimizer,
    outer_optimizer: Optimizer,
    *,
    num_steps: int = 16,
    proximal: float = 2.0,
    cg_steps: int = 5,
    **options: Unpack[Options],
) -> MetaLearner:
    r"""Implicit MAML: the gradient of the proximal inner problem's minimizer.

    .. math::
      \phi^* = \operatorname{argmin}_\phi L(\phi) + \tfrac{\lambda}{2} \|\phi - \theta\|^2, \quad
      \nabla_\theta = (I + \nabla^2 L(\phi^*) / \lambda)^{-1} \nabla Q(\phi^*)

    Args:
      loss: `(params, batch, rng) -> (scalar, metrics)`.
      inner_optimizer: any optax transformation that comes close to the minimizer.
      outer_optimizer: any optax transformation.
      num_steps: adaptation steps, at least 1; memory does not depend on their number.
      proximal: the coefficient :math:`\lambda`, positive.
      cg_steps: the maximal number of conjugate-gradient iterations for the inverse.
      **options: `carry`, `task_chunk` and `mesh`, see `metajax.Options`. The batches must be full.

    Raises:
      ValueError: if `proximal` is not positive, for an inner optimizer that does not minimize (see
        `implicit`), or for other arguments that do not fit together.

    Example:

    >>> import jax.numpy as jnp, optax, metajax
    >>> loss = lambda params, batch, rng: (jnp.mean((params - batch) ** 2), {})
    >>> learner = metajax.imaml(loss, optax.sgd(0.1), optax.adam(1e-3), num_steps=16, proximal=2.0)

    References:
      Rajeswaran et al., `Meta-Learning with Implicit Gradients
      <https://arxiv.org/abs/1909.04630>`_, 2019, algorithms 1 and 2.
    """
    inner = {
        "num_steps": base.check_integer("imaml: num_steps", num_steps),
        "meta_gradient": implicit(cg_steps=cg_steps),
        "proximal": proximal,
    }
    return build_learner(loss, inner_optimizer, inner, query_loss(loss), outer_optimizer, options)


def meta_sgd(
    loss: LossFn,
    outer_optimizer: Optimizer,
    *,
    num_steps: int = 1,
    learning_rate: float = 0.1,
    meta_gradient: MetaGradient | None = None,
    **options: Unpack[Options],
) -> MetaLearner:
    r"""Meta-SGD: MAML with a learned step size for every parameter.

    .. math:: \phi = \theta - \alpha \odot \nabla L(\theta), \quad
      \text{both } \theta \text{ and } \alpha \text{ meta-learned}

    Args:
      loss: `(params, batch, rng) -> (scalar, metrics)`.
      outer_optimizer: any optax transformation; it sees `MetaParams(params, step sizes)`.
      num_steps: adaptation steps, at least 1.
      learning_rate: the initial step size; the learned ones are `state.meta_params.inner`.
      meta_gradient: `second_order()` by default; `first_order()` still learns the step sizes.
      **options: `batches`, `carry`, `task_chunk` and `mesh`, see `metajax.Options`.

    Raises:
      ValueError: for arguments of the wrong kind or that do not fit together.

    Example:

    >>> import jax.numpy as jnp, optax, metajax
    >>> loss = lambda params, batch, rng: (jnp.mean((params - batch) ** 2), {})
    >>> learner = metajax.meta_sgd(loss, optax.adam(1e-3), learning_rate=0.05)
    >>> float(learner.init(jnp.zeros(())).meta_params.inner)
    0.05...

    References:
      Li et al., `Meta-SGD: Learning to Learn Quickly for Few-Shot Learning
      <https://arxiv.org/abs/1707.09835>`_, 2017, equation 2 and algorithm 1.
    """
    optimizer = optimizers.learned_step_sizes(learning_rate)
    inner = {"num_steps": num_steps, "meta_gradient": meta_gradient}
    return build_learner(loss, optimizer, inner, query_loss(loss), outer_optimizer, options)


def anil(
    loss: LossFn,
    inner_optimizer: Optimizer | LearnedOptimizer,
    outer_optimizer: Optimizer,
    *,
    num_steps: int = 1,
    head: PathPredicate,
    meta_gradient: MetaGradient | None = None,
    **options: Unpack[Options],
) -> MetaLearner:
    r"""Almost no inner loop: only the head adapts, and only the outer loop learns the body.

    .. math:: \phi^{head} = \theta^{head} - \alpha \nabla_{head} L(\theta), \quad
      \phi^{body} = \theta^{body}

    Args:
      loss: `(params, batch, rng) -> (scalar, metrics)`.
      inner_optimizer: any optax transformation, or a `LearnedOptimizer`, applied to the head.
      outer_optimizer: any optax transformation, applied to everything.
      num_steps: adaptation steps.
      head: a predicate on the pytree path, as `jax.tree_util.tree_map_with_path` passes it:
        `lambda path: "head" in jax.tree_util.keystr(path)`.
      meta_gradient: `second_order()` or `first_order()`.
      **options: `batches`, `carry`, `task_chunk` and `mesh`, see `metajax.Options`.

    Raises:
      ValueError: if `head` accepts no parameter or all of them; for other arguments that do not
        fit together.

    Example:

    >>> import jax, jax.numpy as jnp, optax, metajax
    >>> learner = metajax.anil(
    ...     lambda params, x, rng: (jnp.mean((x @ params["body"] @ params["head"]) ** 2), {}),
    ...     optax.sgd(0.1), optax.adam(1e-3),
    ...     head=lambda path: "head" in jax.tree_util.keystr(path))
    >>> state = learner.init({"body": jnp.ones((2, 2)), "head": jnp.ones((2, 1))})

    References:
      Raghu et al., `Rapid Learning or Feature Reuse? <https://arxiv.org/abs/1909.09157>`_, 2020,
      section 4.
    """
    optimizer = optimizers.adapt_only(inner_optimizer, head)
    inner = {"num_steps": num_steps, "meta_gradient": meta_gradient}
    return build_learner(loss, optimizer, inner, query_loss(loss), outer_optimizer, options)


def boil(
    loss: LossFn,
    inner_optimizer: Optimizer | LearnedOptimizer,
    outer_optimizer: Optimizer,
    *,
    num_steps: int = 1,
    head: PathPredicate,
    meta_gradient: MetaGradient | None = None,
    **options: Unpack[Options],
) -> MetaLearner:
    r"""Body-only inner loop: everything but the head adapts.

    .. math:: \phi^{body} = \theta^{body} - \alpha \nabla_{body} L(\theta), \quad
      \phi^{head} = \theta^{head}

    Arguments and errors are those of `anil`; the inner optimizer is applied to the body.

    Example:

    >>> import jax, jax.numpy as jnp, optax, metajax
    >>> learner = metajax.boil(
    ...     lambda params, x, rng: (jnp.mean((x @ params["body"] @ params["head"]) ** 2), {}),
    ...     optax.sgd(0.1), optax.adam(1e-3),
    ...     head=lambda path: "head" in jax.tree_util.keystr(path))
    >>> state = learner.init({"body": jnp.ones((2, 2)), "head": jnp.ones((2, 1))})

    References:
      Oh et al., `BOIL: Towards Representation Change for Few-shot Learning
      <https://arxiv.org/abs/2008.08882>`_, 2021, section 3.
    """
    optimizer = optimizers.adapt_only(inner_optimizer, optimizers.other_than(head))
    inner = {"num_steps": num_steps, "meta_gradient": meta_gradient}
    return build_learner(loss, optimizer, inner, query_loss(loss), outer_optimizer, options)
