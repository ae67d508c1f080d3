"""Reptile for reinforcement learning."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from metajax.base import Episode, Key, MetaLearner, MetaParams, MetaState, Metrics, check_kind
from metajax.learner import check_opt_state
from metajax.optimizers import check_optimizer
from metajax.rl.inner import Collected, InnerLoop
from metajax.rl.learner import checked_init, make_learner
from metajax.rl.objective import collect_batch, mean_over_tasks


def reptile(
    loop: InnerLoop,
    outer_optimizer: optax.GradientTransformation,
    *,
    task_chunk: int | None = None,
    mesh: Mesh | None = None,
) -> MetaLearner:
    r"""Reptile: moves the initialization towards the adapted parameters.

    .. math::
      \theta \leftarrow \mathrm{opt}\Big(\theta,\; \frac{1}{n} \sum_i (\theta - \phi_i)\Big)

    Args:
      loop: from `rl.inner_loop`; its `meta_gradient` has no effect.
      outer_optimizer: any optax transformation; the mean of :math:`\theta - \phi_i` is its
        gradient.
      task_chunk: tasks per `vmap`, see `metajax.meta_learner`.
      mesh: devices that share the tasks, such as `metajax.task_mesh()`.

    Returns:
      A `MetaLearner` for episodes whose support is a task. `update` reports `objective`, half the
      squared norm of the mean displacement, and `meta_gradient_norm`, its norm; `return`,
      `entropy`, `env_steps` and `failures` as `maml_trpo`.

    Raises:
      ValueError: for arguments of the wrong kind.

    Example:

    >>> import jax, jax.numpy as jnp, metajax, optax
    >>> from metajax import rl
    >>> from metajax.rl.navigation import navigation
    >>> env = navigation()._replace(horizon=5)
    >>> model = rl.GaussianMLP(env.action_size, hidden=())
    >>> loop = rl.inner_loop(
    ...     model.apply, rl.sampler(env, model.apply, 4), optax.sgd(0.1), num_steps=3)
    >>> learner = rl.reptile(loop, optax.sgd(0.1))
    >>> state = learner.init(model.init(jax.random.key(0), jnp.zeros(2)))
    >>> episodes = metajax.tasks.meta_batch(rl.Tasks(env.sample_tasks), 2, jax.random.key(1))
    >>> state, metrics = jax.jit(learner.update)(state, episodes, jax.random.key(2))
    >>> metrics["return"].shape  # before and after each adaptation step
    (4,)

    References:
      Nichol et al., `On First-Order Meta-Learning Algorithms
      <https://arxiv.org/abs/1803.02999>`_, 2018, algorithm 2.
    """
    check_kind("reptile: loop", loop, InnerLoop, "from rl.inner_loop")
    check_optimizer("reptile: outer_optimizer", outer_optimizer)
    outer_optimizer = optax.with_extra_args_support(outer_optimizer)

    def displacement(meta_params: MetaParams, collected: Collected) -> MetaParams:
        away = jax.tree.map(lambda x, y: x - y[-1], meta_params.params, collected.policies)
        return MetaParams(away, jax.tree.map(jnp.zeros_like, meta_params.inner))

    mean_displacement = mean_over_tasks(displacement, task_chunk, mesh)

    def update(state: MetaState, episodes: Episode, rng: Key) -> tuple[MetaState, Metrics]:
        check_opt_state(state, outer_optimizer.init)
        batch, metrics = collect_batch(loop, state, episodes, rng, task_chunk, mesh)
        away = mean_displacement(state.meta_params, batch)
        norm = optax.tree.norm(away)
        metrics |= {"objective": 0.5 * norm**2, "meta_gradient_norm": norm}
        updates, opt_state = outer_optimizer.update(
            away, state.opt_state, state.meta_params, value=metrics["objective"]
        )
        meta_params = optax.apply_updates(state.meta_params, updates)
        return MetaState(meta_params, opt_state, (), state.step + 1), metrics

    return make_learner(loop, checked_init(outer_optimizer), update)
