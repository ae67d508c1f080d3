"""Outer steps of meta-reinforcement learning, each a `MetaLearner`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.sparse.linalg import cg
from jax.sharding import Mesh

from metajax.base import (
    Array,
    Batch,
    Episode,
    Key,
    MetaLearner,
    MetaParams,
    MetaState,
    Metrics,
    Params,
    PyTree,
    check_function,
    check_integer,
    strongly_typed,
)
from metajax.learner import check_state
from metajax.optimizers import check_optimizer, check_update
from metajax.rl.adaptation import Adaptation, Collected
from metajax.rl.arguments import check_kind, check_number, check_opt_state
from metajax.rl.objective import (
    collect_all,
    every,
    judged_trajectories,
    kl_curvature,
    kl_on_the_way,
    loss_and_kl,
    mean_kl,
    mean_over_steps,
    mean_over_tasks,
    outcome,
    ratios,
)


class LineSearch(NamedTuple):
    scale: Array  # of the next try, in whole steps
    tried: Array
    accepted: Array
    meta_params: MetaParams
    loss: Array
    kl: Array


def trust_region(
    adaptation: Adaptation,
    *,
    max_kl: float | Array | optax.Schedule = 0.01,
    cg_steps: int = 10,
    damping: float | Array = 1e-5,
    backtrack: float | Array = 0.8,
    max_backtracks: int = 15,
    curvature_stride: int = 1,
    every_step: bool = False,
    task_chunk: int | None = None,
    mesh: Mesh | None = None,
) -> MetaLearner:
    r"""TRPO on the adapted policies: the paper's meta-optimizer.

    .. math::
      \min_\theta \frac{1}{n} \sum_i L_i(\phi_i(\theta)) \quad \text{s.t.} \quad
      \frac{1}{n} \sum_i \mathrm{KL}(\pi_{\phi_i(\theta_{old})} \| \pi_{\phi_i(\theta)})
      \le \delta

    The direction solves :math:`(F + \lambda I) x = g` by conjugate gradients. F is the exact
    Hessian of the constraint, :math:`J^\top H J`: J, the derivative of the adapted policy's
    distributions by the initialization, is linearized once, H is the Hessian of the KL by the
    distributions. What this leaves out of the full derivative is multiplied by the gradient of the
    KL, which is zero there.
    A backtracking line search accepts the first step that lowers the loss within the constraint;
    without one, or where anything is not finite, the parameters stay. As the KL grows with the
    square of a small step, a try tells which step would have come just within the constraint: the
    next try goes back that far, and an accepted one says where the search of the next meta-update
    begins (never beyond the whole step). With first-order adaptation, whose own curvature F leaves
    out, that saves most of the tries. As the number of tries is not known before, forward mode
    crosses `update` and reverse mode does not.

    Args:
      adaptation: from `rl.adaptation`.
      max_kl: :math:`\delta`, mean over tasks of the mean over steps; a number, or a function of
        the meta-update, such as `optax.linear_schedule`, for steps that become smaller.
      cg_steps: conjugate-gradient iterations.
      damping: :math:`\lambda`.
      backtrack: factor between two tries of the line search; a smaller one, down to a half, where
        the KL says so.
      max_backtracks: tries at most.
      curvature_stride: F is estimated from every so many-th trajectory; 1 takes all of them. What
        the linearization leaves of these is held for all tasks at once.
      every_step: judge the policies after every adaptation step, not after the last one only.
      task_chunk: tasks per `vmap`, see `metajax.meta_learner`.
      mesh: devices that share the tasks, such as `metajax.task_mesh()`.

    Returns:
      A `MetaLearner` for episodes whose support is a task. `update` reports `objective`,
      `meta_gradient_norm`, `return` `[num_steps + 1]` before and after each adaptation step,
      `entropy` likewise, `kl`, `improvement` of the loss, `line_search_steps`, `accepted`,
      `cg_residual` (relative), `env_steps` and `failures` of the physics per task.

    Raises:
      ValueError: for arguments out of range, and for an `adaptation` that forward mode does not
        cross, such as one of `mixed_mode()`.

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      section 5.3; Schulman et al., `Trust Region Policy Optimization
      <https://arxiv.org/abs/1502.05477>`_, 2015, appendix C.
    """
    check_kind("trust_region: adaptation", adaptation, Adaptation, "from rl.adaptation")
    if callable(max_kl):
        check_function("trust_region: max_kl", max_kl, "meta_update")
        radius = max_kl
    else:
        check_number("trust_region: max_kl", max_kl, "(0, inf)")
        radius = optax.constant_schedule(max_kl)
    check_number("trust_region: damping", damping, "[0, inf)")
    check_number("trust_region: backtrack", backtrack, "(0, 1)")
    cg_steps = check_integer("trust_region: cg_steps", cg_steps)
    max_backtracks = check_integer("trust_region: max_backtracks", max_backtracks)
    curvature_stride = check_integer("trust_region: curvature_stride", curvature_stride)
    if not adaptation.replay.forward:
        raise ValueError(
            "trust_region: the curvature linearizes adaptation, and its meta_gradient works in "
            "reverse mode only; take second_order() or first_order()."
        )
    of_task = functools.partial(loss_and_kl, adaptation, every_step=every_step)
    measure = mean_over_tasks(of_task, task_chunk, mesh)
    at_start = jax.value_and_grad(functools.partial(of_task, collecting=True), has_aux=True)
    gradient = mean_over_tasks(at_start, task_chunk, mesh)

    def opt_init(meta_params: MetaParams) -> Array:
        return jnp.ones((), jnp.result_type(*jax.tree.leaves(meta_params)))

    def update(state: MetaState, episodes: Episode, rng: Key) -> tuple[MetaState, Metrics]:
        check_opt_state("trust_region", state, opt_init)
        old = state.meta_params
        batch, metrics = collect_all(adaptation, state, episodes, rng, task_chunk, mesh)
        (loss, _), g = gradient(old, batch)
        common = jnp.result_type(*jax.tree.leaves(g))
        g = jax.tree.map(lambda x: x.astype(common), g)
        curvature = kl_curvature(
            adaptation,
            old,
            every(batch, curvature_stride),
            every_step=every_step,
            task_chunk=task_chunk,
            mesh=mesh,
        )

        def damped(v: MetaParams) -> MetaParams:
            return _like(v, optax.tree.add_scale(curvature(_like(old, v)), damping, v))

        direction, _ = cg(damped, g, tol=1e-6, maxiter=cg_steps)
        product = damped(direction)
        quadratic = 0.5 * optax.tree.vdot(direction, product)
        bound = jnp.asarray(radius(state.step), loss.dtype)
        step = optax.tree.scale(jnp.sqrt(bound / quadratic), direction)
        found = search(old, step, state.opt_state, loss, bound, batch)
        residual = optax.tree.norm(optax.tree.sub(g, product)) / optax.tree.norm(g)
        metrics |= {
            "objective": loss,
            "meta_gradient_norm": optax.tree.norm(g),
            "kl": found.kl,
            "improvement": loss - found.loss,
            "line_search_steps": found.tried,
            "accepted": found.accepted.astype(jnp.float32),
            "cg_residual": residual,
        }
        scale = jnp.where(found.accepted, jnp.minimum(found.scale, 1.0), 1.0)
        return MetaState(found.meta_params, scale, (), state.step + 1), metrics

    def search(
        old: MetaParams,
        step: MetaParams,
        scale: Array,
        loss: Array,
        bound: Array,
        batch: Collected,
    ) -> LineSearch:
        def attempt(last: LineSearch) -> LineSearch:
            meta_params = optax.tree.add_scale(old, -last.scale, step)
            new_loss, kl = measure(meta_params, batch)
            finite = jnp.isfinite(new_loss) & jnp.isfinite(kl)
            accepted = finite & (new_loss < loss) & (kl <= bound)
            keep = [
                jax.tree.map(lambda new, old: jnp.where(accepted, new, old), *pair)
                for pair in ((meta_params, old), (new_loss, loss), (kl, jnp.zeros_like(kl)))
            ]
            # To nine tenths of the bound, so that the next try is not over it by a rounding.
            within = jnp.sqrt(0.9 * bound / jnp.maximum(kl, jnp.finfo(kl.dtype).tiny))
            back = jnp.clip(within, jnp.minimum(0.5, backtrack), backtrack)
            beyond = finite & (kl > bound)
            factor = jnp.where(accepted, within, jnp.where(beyond, back, backtrack))
            new = LineSearch(last.scale * factor, last.tried + 1, accepted, *keep)
            return _like(last, new)

        def unfinished(last: LineSearch) -> Array:
            return ~last.accepted & (last.tried < max_backtracks)

        kl, tried = jnp.zeros_like(loss), jnp.zeros((), jnp.int32)
        start = LineSearch(scale, tried, jnp.asarray(False), old, loss, kl)
        return jax.lax.while_loop(unfinished, attempt, start)

    def init(params: Params) -> MetaState:
        return _init(adaptation, params, opt_init)

    return MetaLearner(init, _adapt(adaptation), update)


def clipped(
    adaptation: Adaptation,
    outer_optimizer: optax.GradientTransformation,
    *,
    num_epochs: int = 5,
    clip: float | Array = 0.3,
    kl_penalty: float | Array = 5e-4,
    every_step: bool = False,
    task_chunk: int | None = None,
    mesh: Mesh | None = None,
) -> MetaLearner:
    r"""ProMP: several optax steps on PPO's clipped surrogate of the adapted policies.

    .. math::
      \min_\theta \frac{1}{n} \sum_i
      -\mathbb{E}\big[\min(r A, \mathrm{clip}(r, 1 \pm \epsilon) A)\big]
      + \eta \, \mathrm{KL}(\pi_{\theta_{old}} \| \pi_\theta)

    with r the ratio of the policies adapted from :math:`\theta` and from :math:`\theta_{old}`, and
    the KL that of the policies before each adaptation step.

    Args:
      adaptation: from `rl.adaptation`; ProMP's surrogate is `likelihood_ratio`.
      outer_optimizer: any optax transformation; ProMP's is `optax.adam(1e-3)`.
      num_epochs: optax steps per meta-batch.
      clip: :math:`\epsilon`.
      kl_penalty: :math:`\eta`.
      every_step: judge the policies after every adaptation step, not after the last one only.
      task_chunk: tasks per `vmap`, see `metajax.meta_learner`.
      mesh: devices that share the tasks, such as `metajax.task_mesh()`.

    Returns:
      A `MetaLearner` as `trust_region`; `update` reports `kl` of the adapted policies after the
      last step, and `clipped`, the fraction of ratios beyond the clip there.

    Raises:
      ValueError: for arguments out of range.

    References:
      Rothfuss et al., `ProMP: Proximal Meta-Policy Search <https://arxiv.org/abs/1810.06784>`_,
      2019, equation 10 and algorithm 1; Schulman et al., 2017.
    """
    check_kind("clipped: adaptation", adaptation, Adaptation, "from rl.adaptation")
    check_optimizer("clipped: outer_optimizer", outer_optimizer)
    outer_optimizer = optax.with_extra_args_support(outer_optimizer)
    num_epochs = check_integer("clipped: num_epochs", num_epochs)
    check_number("clipped: clip", clip, "(0, inf]")
    check_number("clipped: kl_penalty", kl_penalty, "[0, inf)")

    def of_task(meta_params: MetaParams, collected: Collected) -> tuple[Array, Metrics]:
        judged = judged_trajectories(collected, every_step)
        new = outcome(adaptation, meta_params, collected, every_step)
        ratio = ratios(judged, new)
        bounded = jnp.clip(ratio, 1 - clip, 1 + clip)
        gain = jnp.minimum(ratio * judged.advantages, bounded * judged.advantages)
        outside = (ratio != bounded).astype(ratio.dtype)
        value = kl_penalty * kl_on_the_way(adaptation, meta_params, collected.support)
        return value - mean_over_steps(gain, judged), {
            "kl": mean_kl(judged, new),
            "clipped": mean_over_steps(outside, judged),
        }

    gradient = mean_over_tasks(jax.value_and_grad(of_task, has_aux=True), task_chunk, mesh)
    value = mean_over_tasks(of_task, task_chunk, mesh)

    def update(state: MetaState, episodes: Episode, rng: Key) -> tuple[MetaState, Metrics]:
        check_opt_state("clipped", state, outer_optimizer.init)
        batch, metrics = collect_all(adaptation, state, episodes, rng, task_chunk, mesh)

        def epoch(carried, _):
            meta_params, opt_state = carried
            (loss, _), g = gradient(meta_params, batch)
            updates, opt_state = outer_optimizer.update(g, opt_state, meta_params, value=loss)
            meta_params = optax.apply_updates(meta_params, updates)
            return (meta_params, opt_state), (loss, optax.tree.norm(g))

        (meta_params, opt_state), (losses, norms) = jax.lax.scan(
            epoch, (state.meta_params, state.opt_state), length=num_epochs
        )
        last, measured = value(meta_params, batch)
        metrics |= measured | {
            "objective": losses[0],
            "meta_gradient_norm": norms[0],
            "improvement": losses[0] - last,
        }
        return MetaState(meta_params, opt_state, (), state.step + 1), metrics

    def init(params: Params) -> MetaState:
        return _init(adaptation, params, functools.partial(_opt_init, outer_optimizer))

    return MetaLearner(init, _adapt(adaptation), update)


def displaced(
    adaptation: Adaptation,
    outer_optimizer: optax.GradientTransformation,
    *,
    task_chunk: int | None = None,
    mesh: Mesh | None = None,
) -> MetaLearner:
    r"""Reptile: moves the initialization towards the adapted parameters.

    Args:
      adaptation: from `rl.adaptation`; its `meta_gradient` plays no part.
      outer_optimizer: any optax transformation, fed with :math:`\theta - \phi`.
      task_chunk: tasks per `vmap`, see `metajax.meta_learner`.
      mesh: devices that share the tasks, such as `metajax.task_mesh()`.

    Returns:
      A `MetaLearner` as `trust_region`.

    Raises:
      ValueError: for arguments of the wrong kind.

    References:
      Nichol et al., `On First-Order Meta-Learning Algorithms
      <https://arxiv.org/abs/1803.02999>`_, 2018, algorithm 2.
    """
    check_kind("displaced: adaptation", adaptation, Adaptation, "from rl.adaptation")
    check_optimizer("displaced: outer_optimizer", outer_optimizer)
    outer_optimizer = optax.with_extra_args_support(outer_optimizer)

    def of_task(meta_params: MetaParams, collected: Collected) -> MetaParams:
        away = jax.tree.map(lambda x, y: x - y[-1], meta_params.params, collected.policies)
        return MetaParams(away, jax.tree.map(jnp.zeros_like, meta_params.inner))

    displacement = mean_over_tasks(of_task, task_chunk, mesh)

    def update(state: MetaState, episodes: Episode, rng: Key) -> tuple[MetaState, Metrics]:
        check_opt_state("displaced", state, outer_optimizer.init)
        batch, metrics = collect_all(adaptation, state, episodes, rng, task_chunk, mesh)
        away = displacement(state.meta_params, batch)
        norm = optax.tree.norm(away)
        metrics |= {"objective": 0.5 * norm**2, "meta_gradient_norm": norm}
        updates, opt_state = outer_optimizer.update(
            away, state.opt_state, state.meta_params, value=metrics["objective"]
        )
        meta_params = optax.apply_updates(state.meta_params, updates)
        return MetaState(meta_params, opt_state, (), state.step + 1), metrics

    def init(params: Params) -> MetaState:
        return _init(adaptation, params, functools.partial(_opt_init, outer_optimizer))

    return MetaLearner(init, _adapt(adaptation), update)


def _init(adaptation: Adaptation, params: Params, opt_init: Callable) -> MetaState:
    inner, _ = adaptation.collect.init(params)
    meta_params = strongly_typed(MetaParams(params, inner))
    opt_state = strongly_typed(opt_init(meta_params))
    return MetaState(meta_params, opt_state, (), jnp.zeros((), jnp.int32))


def _opt_init(optimizer: optax.GradientTransformation, meta_params: MetaParams) -> PyTree:
    check_update(optimizer, meta_params)
    return optimizer.init(meta_params)


def _like(tree: PyTree, other: PyTree) -> PyTree:
    """`other` in the types of `tree`."""
    return jax.tree.map(lambda x, y: jnp.asarray(y, x.dtype), tree, other)


def _adapt(adaptation: Adaptation) -> Callable[[MetaState, Batch, Key], Params]:
    def adapt(state: MetaState, task: Batch, rng: Key) -> Params:
        check_state(state)
        return adaptation.collect.apply(state.meta_params, task, rng)[0]

    return adapt
