"""The algorithms, each a composition of an inner loop, a meta-gradient and an objective."""

from __future__ import annotations

from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from metajax.base import (
    Array,
    Episode,
    Key,
    LossFn,
    MetaLearner,
    MetaState,
    Metrics,
    Objective,
    check_integer,
)
from metajax.batches import Batches
from metajax.gradients import MetaGradient, first_order, implicit, second_order
from metajax.inner import inner_loop
from metajax.learner import check_state, meta_learner
from metajax.objectives import displacement, last_update, multi_step_query_loss, query_loss
from metajax.optimizers import (
    LearnedOptimizer,
    Optimizer,
    PathPredicate,
    adapting,
    learned_step_sizes,
    other_than,
)


class Options(TypedDict, total=False):
    """The arguments that all algorithms share.

    Attributes:
      batches: what each inner step sees of the support: `full_batch()` by default, `cycle(size)`,
        `replacement(size)` or `per_step()`.
      carry: how the inner optimizer's state passes from task to task: `None` (each task starts
        afresh), `"mean"` or `"serial"`, see `inner_loop`.
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

    The meta-gradient is that of the whole expression, through the inner gradient.

    Args:
      loss: `(params, batch, rng) -> (scalar, metrics)`.
      inner_optimizer: any optax transformation, or a `LearnedOptimizer`. `optax.adam` needs
        `eps_root` to be differentiable.
      outer_optimizer: any optax transformation.
      num_steps: adaptation steps; 0 is joint training on the query sets.
      meta_gradient: `second_order()` by default.
      **options: `batches`, `carry`, `task_chunk` and `mesh`, see `metajax.Options`.

    Raises:
      ValueError: for arguments that do not fit together.

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
    return _learner(loss, inner_optimizer, inner, query_loss(loss), outer_optimizer, options)


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
      tail: `None` for the query gradient. Nichol et al. take the last update of the inner optimizer
        in its place, on a mini-batch of the support, as the steps before (`"shared"`), or on the
        query, which these have not seen (`"separate"`); see `last_update`.
      **options: `batches`, `carry`, `task_chunk` and `mesh`, see `metajax.Options`.

    Raises:
      ValueError: for arguments that do not fit together, such as a tail without steps.

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
    if tail not in (None, "shared", "separate"):
        raise ValueError(f'fomaml: tail must be None, "shared" or "separate", got {tail!r}.')
    if tail and num_steps == 0:
        raise ValueError("fomaml: the tail is the last of the steps, so num_steps must not be 0.")
    inner: dict[str, Any] = {"num_steps": num_steps, "meta_gradient": first_order()}
    objective = query_loss(loss)
    if tail == "shared":
        objective = last_update(loss)
    elif tail == "separate":
        inner["num_steps"] -= 1
        carry = options.get("carry")
        last = inner_loop(loss, inner_optimizer, 1, meta_gradient=first_order(), carry=carry)
        objective = last_update(loss, tail=last)
    return _learner(loss, inner_optimizer, inner, objective, outer_optimizer, options)


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

    with `outer_optimizer=optax.sgd(epsilon)`; any other takes :math:`\theta - \phi` as a gradient.

    Args:
      loss: `(params, batch, rng) -> (scalar, metrics)`.
      inner_optimizer: any optax transformation; the paper's is `optax.adam(lr, b1=0)`.
      outer_optimizer: any optax transformation.
      num_steps: adaptation steps, at least 1.
      **options: `batches` (the paper's are `cycle(batch_size)`), `carry` (`"serial"` is the
        authors' code, `"mean"` its parallel counterpart), `task_chunk` and `mesh`, see
        `metajax.Options`.

    Raises:
      ValueError: for arguments that do not fit together.

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
    return _learner(loss, inner_optimizer, inner, displacement(loss), outer_optimizer, options)


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
    r"""MAML++: MAML whose objective weighs the query losses of all steps, at first equally.

    .. math:: \sum_t w_t Q(\phi_t), \quad w_t = \frac{1 - p}{T} \; (t < T), \quad
      w_T = \frac{1 - p}{T} + p

    with :math:`p` growing from 0 to 1 over the first updates. The other parts of the method are
    arguments: step sizes per array and step are `learned_per_step_sizes`, normalizations per step
    `nn.conv_per_step` and `counting`, the schedule `optax.cosine_decay_schedule`.

    Args:
      loss: `(params, batch, rng) -> (scalar, metrics)`.
      inner_optimizer: the paper's is `learned_per_step_sizes(learning_rate, num_steps)`.
      outer_optimizer: any optax transformation.
      num_steps: adaptation steps, at least 1.
      annealed_updates: meta-updates until only the last step counts; 0: from the first on.
      first_order_updates: meta-updates at the start that are first order.
      meta_gradient: of the updates after these, `second_order()` by default.
      **options: `batches`, `carry`, `task_chunk` and `mesh`, see `metajax.Options`.

    Raises:
      ValueError: for arguments that do not fit together.

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
    num_steps = check_integer("maml_plus_plus: num_steps", num_steps)
    annealed = check_integer("maml_plus_plus: annealed_updates", annealed_updates, minimum=0)
    first = check_integer("maml_plus_plus: first_order_updates", first_order_updates, minimum=0)

    exact = second_order() if meta_gradient is None else meta_gradient

    def learner(engine: MetaGradient, step: Array) -> MetaLearner:
        progress = jnp.minimum(step / annealed, 1.0) if annealed else jnp.ones(())
        weights = jnp.full(num_steps, (1 - progress) / num_steps).at[-1].add(progress)
        inner = {"num_steps": num_steps, "meta_gradient": engine}
        objective = multi_step_query_loss(loss, weights)
        return _learner(loss, inner_optimizer, inner, objective, outer_optimizer, options)

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
      \phi^* = \arg\min_\phi L(\phi) + \tfrac{\lambda}{2} \|\phi - \theta\|^2, \quad
      \nabla_\theta = (I + \nabla^2 L(\phi^*) / \lambda)^{-1} \nabla Q(\phi^*)

    Args:
      loss: `(params, batch, rng) -> (scalar, metrics)`.
      inner_optimizer: any optax transformation; it should come close to the minimizer.
      outer_optimizer: any optax transformation.
      num_steps: adaptation steps; memory does not depend on them.
      proximal: :math:`\lambda`, positive.
      cg_steps: conjugate-gradient iterations for the inverse.
      **options: `carry`, `task_chunk` and `mesh`, see `metajax.Options`; the batches are full.

    Raises:
      ValueError: if `proximal` is not positive, or for other arguments that do not fit together.

    References:
      Rajeswaran et al., `Meta-Learning with Implicit Gradients
      <https://arxiv.org/abs/1909.04630>`_, 2019, algorithms 1 and 2.
    """
    inner = {
        "num_steps": check_integer("imaml: num_steps", num_steps),
        "meta_gradient": implicit(cg_steps=cg_steps),
        "proximal": proximal,
    }
    return _learner(loss, inner_optimizer, inner, query_loss(loss), outer_optimizer, options)


def meta_sgd(
    loss: LossFn,
    outer_optimizer: Optimizer,
    *,
    num_steps: int = 1,
    learning_rate: float = 0.1,
    meta_gradient: MetaGradient | None = None,
    **options: Unpack[Options],
) -> MetaLearner:
    r"""Meta-SGD: MAML that also learns a step size for every parameter.

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
      ValueError: for arguments that do not fit together.

    References:
      Li et al., `Meta-SGD: Learning to Learn Quickly for Few-Shot Learning
      <https://arxiv.org/abs/1707.09835>`_, 2017, equation 2 and algorithm 1.
    """
    return maml(
        loss,
        learned_step_sizes(learning_rate),
        outer_optimizer,
        num_steps=num_steps,
        meta_gradient=meta_gradient,
        **options,
    )


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
    """Almost no inner loop: only the head adapts; the body is learned by the outer loop alone.

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
    return maml(
        loss,
        adapting(inner_optimizer, head),
        outer_optimizer,
        num_steps=num_steps,
        meta_gradient=meta_gradient,
        **options,
    )


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
    """Body-only inner loop: everything but the head adapts. Arguments and errors as in `anil`.

    References:
      Oh et al., `BOIL: Towards Representation Change for Few-shot Learning
      <https://arxiv.org/abs/2008.08882>`_, 2021, section 3.
    """
    return maml(
        loss,
        adapting(inner_optimizer, other_than(head)),
        outer_optimizer,
        num_steps=num_steps,
        meta_gradient=meta_gradient,
        **options,
    )


def _learner(
    loss: LossFn,
    inner_optimizer: Optimizer | LearnedOptimizer,
    inner: dict[str, Any],
    objective: Objective,
    outer_optimizer: Optimizer,
    options: Options,
) -> MetaLearner:
    known = Options.__annotations__.keys()
    if unknown := sorted(options.keys() - known):
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}; the options are {[*known]}.")
    inner |= {name: options.get(name) for name in ("batches", "carry")}
    outer: dict[str, Any] = {name: options.get(name) for name in ("task_chunk", "mesh")}
    adapt = inner_loop(loss, inner_optimizer, **inner)
    return meta_learner(adapt, objective, outer_optimizer, **outer)
