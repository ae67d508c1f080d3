"""MAML with trust-region policy optimization as the outer step."""

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
    Episode,
    Key,
    MetaLearner,
    MetaParams,
    MetaState,
    Metrics,
    PyTree,
    check_function,
    check_integer,
    check_kind,
    check_number,
)
from metajax.learner import check_opt_state
from metajax.rl.inner import InnerLoop
from metajax.rl.learner import make_learner
from metajax.rl.objective import (
    collect_batch,
    gradient_over_tasks,
    kl_curvature,
    loss_and_kl,
    mean_over_tasks,
    take_every,
)


def maml_trpo(
    loop: InnerLoop,
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
    r"""MAML whose outer step is TRPO: a trust region on the adapted policies.

    .. math::
      \min_\theta \frac{1}{n} \sum_i L_i(\phi_i(\theta)) \quad \text{s.t.} \quad
      \frac{1}{n} \sum_i \mathrm{KL}(\pi_{\phi_i(\theta_{old})} \| \pi_{\phi_i(\theta)})
      \le \delta

    The direction x of the step solves :math:`(F + \lambda I) x = g` by conjugate gradients. g is
    the gradient of the loss and F the exact Hessian of the KL, see `kl_curvature`.

    A backtracking line search accepts the first step that lowers the loss and satisfies the
    constraint. If it finds none, the parameters stay as they are; a loss or a KL that is not finite
    is never accepted. For small steps the KL grows with the square of the step, so each attempt
    predicts the longest step that satisfies the constraint. After a step beyond the constraint, the
    next attempt takes the predicted length. An accepted step sets the first length of the next
    meta-update, at most the full step. With first-order adaptation, where F omits the second
    derivatives of adaptation, this saves most attempts.

    The line search is a loop of unknown length. `update` can therefore be differentiated in forward
    mode, but not in reverse mode.

    Args:
      loop: from `rl.inner_loop`.
      max_kl: :math:`\delta`, a bound on the mean KL over tasks and steps; a number, or a schedule
        of the meta-update such as `optax.linear_schedule`.
      cg_steps: conjugate-gradient iterations.
      damping: :math:`\lambda`.
      backtrack: factor on the step after a rejected attempt. If the KL was too large, the factor
        may be smaller, down to 0.5.
      max_backtracks: largest number of attempts.
      curvature_stride: F uses every `curvature_stride`-th trajectory; 1 uses all of them. The
        linearization of these trajectories is kept in memory for all tasks at once.
      every_step: average loss and KL over the policies after every adaptation step, instead of
        taking the last one only.
      task_chunk: tasks per `vmap`, see `metajax.meta_learner`.
      mesh: devices that share the tasks, such as `metajax.task_mesh()`.

    Returns:
      A `MetaLearner` for episodes whose support is a task. `update` reports

      - `objective` and `meta_gradient_norm`, before the step;
      - `return` and `entropy`, means before and after each adaptation step, `[num_steps + 1]`;
      - `kl` of the step and `improvement` of the loss; 0 if no step was accepted;
      - `accepted` (0 or 1) and `line_search_steps`, the number of attempts;
      - `cg_residual`, relative to the gradient;
      - `env_steps` and `failures`, totals over the meta-batch of the environment's steps and of the
        trajectories cut off because they were not finite.

    Raises:
      ValueError: for arguments of the wrong kind or out of range, and for a meta-gradient of the
        inner loop that forward mode does not cross, such as `mixed_mode()`.

    Example:

    >>> import jax, jax.numpy as jnp, metajax, optax
    >>> from metajax import rl
    >>> from metajax.rl.navigation import navigation
    >>> env = navigation()._replace(horizon=5)
    >>> model = rl.GaussianMLP(env.action_size, hidden=())
    >>> loop = rl.inner_loop(model.apply, rl.sampler(env, model.apply, 4), optax.sgd(0.1))
    >>> learner = rl.maml_trpo(loop, max_kl=0.01)
    >>> state = learner.init(model.init(jax.random.key(0), jnp.zeros(2)))
    >>> episodes = metajax.tasks.meta_batch(rl.Tasks(env.sample_tasks), 2, jax.random.key(1))
    >>> state, metrics = jax.jit(learner.update)(state, episodes, jax.random.key(2))
    >>> 0 < float(metrics["kl"]) <= 0.01
    True

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      section 5.3; Schulman et al., `Trust Region Policy Optimization
      <https://arxiv.org/abs/1502.05477>`_, 2015, appendix C.
    """
    check_kind("maml_trpo: loop", loop, InnerLoop, "from rl.inner_loop")
    if callable(max_kl):
        check_function("maml_trpo: max_kl", max_kl, "meta_update")
        radius = max_kl
    else:
        check_number("maml_trpo: max_kl", max_kl, "(0, inf)")
        radius = optax.constant_schedule(max_kl)
    check_number("maml_trpo: damping", damping, "[0, inf)")
    check_number("maml_trpo: backtrack", backtrack, "(0, 1)")
    cg_steps = check_integer("maml_trpo: cg_steps", cg_steps)
    max_backtracks = check_integer("maml_trpo: max_backtracks", max_backtracks)
    curvature_stride = check_integer("maml_trpo: curvature_stride", curvature_stride)
    if not loop.replay.forward:
        raise ValueError(
            "maml_trpo: the meta_gradient of the inner loop must support forward mode, which the "
            "trust region uses; take second_order() or first_order()."
        )
    task_loss = functools.partial(loss_and_kl, loop, every_step=every_step)
    measure = mean_over_tasks(task_loss, task_chunk, mesh)
    at_start = functools.partial(task_loss, collecting=True)
    gradient = gradient_over_tasks(at_start, task_chunk, mesh)

    def opt_init(meta_params: MetaParams) -> Array:
        return jnp.ones((), jnp.result_type(*jax.tree.leaves(meta_params)))

    def update(state: MetaState, episodes: Episode, rng: Key) -> tuple[MetaState, Metrics]:
        check_opt_state(state, opt_init)
        old = state.meta_params
        batch, metrics = collect_batch(loop, state, episodes, rng, task_chunk, mesh)
        (loss, _), g = gradient(old, batch)
        common = jnp.result_type(*jax.tree.leaves(g))
        g = jax.tree.map(lambda x: x.astype(common), g)
        curvature = kl_curvature(
            loop,
            old,
            take_every(batch, curvature_stride),
            every_step=every_step,
            task_chunk=task_chunk,
            mesh=mesh,
        )

        def damped(v: MetaParams) -> MetaParams:
            return _cast_like(v, optax.tree.add_scale(curvature(_cast_like(old, v)), damping, v))

        direction, _ = cg(damped, g, tol=1e-6, maxiter=cg_steps)
        product = damped(direction)
        quadratic = 0.5 * optax.tree.vdot(direction, product)
        bound = jnp.asarray(radius(state.step), loss.dtype)
        step = optax.tree.scale(jnp.sqrt(bound / quadratic), direction)
        found = line_search(
            lambda meta_params: measure(meta_params, batch),
            LineSearch.start(old, loss, state.opt_state),
            step,
            bound,
            backtrack,
            max_backtracks,
        )
        residual = optax.tree.norm(optax.tree.sub(g, product)) / optax.tree.norm(g)
        metrics |= {
            "objective": loss,
            "meta_gradient_norm": optax.tree.norm(g),
            "kl": found.kl,
            "improvement": loss - found.loss,
            "line_search_steps": found.attempts,
            "accepted": found.accepted.astype(jnp.float32),
            "cg_residual": residual,
        }
        scale = jnp.where(found.accepted, jnp.minimum(found.scale, 1.0), 1.0)
        return MetaState(found.meta_params, scale, (), state.step + 1), metrics

    return make_learner(loop, opt_init, update)


class LineSearch(NamedTuple):
    """The state of a line search.

    Attributes:
      scale: length of the next attempt, as a fraction of the full step.
      attempts: number of attempts so far.
      accepted: whether the last attempt was accepted.
      meta_params: the accepted parameters, or the old ones.
      loss: at `meta_params`.
      kl: from the old parameters to `meta_params`.
    """

    scale: Array
    attempts: Array
    accepted: Array
    meta_params: MetaParams
    loss: Array
    kl: Array

    @classmethod
    def start(cls, meta_params: MetaParams, loss: Array, scale: Array) -> LineSearch:
        attempts = jnp.zeros((), jnp.int32)
        return cls(scale, attempts, jnp.asarray(False), meta_params, loss, jnp.zeros_like(loss))


def line_search(
    measure: Callable[[MetaParams], tuple[Array, Array]],
    start: LineSearch,
    step: MetaParams,
    bound: Array,
    backtrack: float | Array,
    max_backtracks: int,
) -> LineSearch:
    """Finds the first step that lowers the loss and keeps the KL within the bound.

    Args:
      measure: `meta_params -> (loss, kl)`.
      start: the state at the old parameters.
      step: the full step, which is subtracted.
      bound: the largest KL allowed.
      backtrack: see `maml_trpo`.
      max_backtracks: largest number of attempts.
    """

    def attempt(last: LineSearch) -> LineSearch:
        meta_params = optax.tree.add_scale(start.meta_params, -last.scale, step)
        loss, kl = measure(meta_params)
        finite = jnp.isfinite(loss) & jnp.isfinite(kl)
        accepted = finite & (loss < start.loss) & (kl <= bound)
        pairs = (meta_params, start.meta_params), (loss, start.loss), (kl, start.kl)
        kept = [
            jax.tree.map(lambda new, old: jnp.where(accepted, new, old), *pair) for pair in pairs
        ]
        # Nine tenths of the bound, so that rounding does not push the next attempt beyond it.
        predicted = jnp.sqrt(0.9 * bound / jnp.maximum(kl, jnp.finfo(kl.dtype).tiny))
        shorter = jnp.clip(predicted, jnp.minimum(0.5, backtrack), backtrack)
        beyond = finite & (kl > bound)
        factor = jnp.where(accepted, predicted, jnp.where(beyond, shorter, backtrack))
        new = LineSearch(last.scale * factor, last.attempts + 1, accepted, *kept)
        return _cast_like(last, new)

    def unfinished(last: LineSearch) -> Array:
        return ~last.accepted & (last.attempts < max_backtracks)

    return jax.lax.while_loop(unfinished, attempt, start)


def _cast_like(tree: PyTree, other: PyTree) -> PyTree:
    """`other` with the array types of `tree`."""
    return jax.tree.map(lambda x, y: jnp.asarray(y, x.dtype), tree, other)
