"""Proximal meta-policy search."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from metajax.base import (
    Array,
    Episode,
    Key,
    MetaLearner,
    MetaParams,
    MetaState,
    Metrics,
    check_integer,
    check_kind,
    check_number,
)
from metajax.learner import check_opt_state
from metajax.optimizers import check_optimizer
from metajax.rl.inner import Collected, InnerLoop
from metajax.rl.learner import checked_init, make_learner
from metajax.rl.objective import (
    adapted_distributions,
    collect_batch,
    gradient_over_tasks,
    inner_kl,
    mean_kl,
    mean_over_steps,
    mean_over_tasks,
    outer_trajectories,
    probability_ratios,
)


def promp(
    loop: InnerLoop,
    outer_optimizer: optax.GradientTransformation,
    *,
    num_epochs: int = 5,
    clip: float | Array = 0.3,
    kl_penalty: float | Array = 5e-4,
    entropy_bonus: float | Array = 0.0,
    every_step: bool = False,
    task_chunk: int | None = None,
    mesh: Mesh | None = None,
) -> MetaLearner:
    r"""ProMP: several optax steps on PPO's clipped objective of the adapted policies.

    .. math::
      \min_\theta \frac{1}{n} \sum_i
      -\mathbb{E}\big[\min(r A, \mathrm{clip}(r, 1 \pm \epsilon) A)\big]
      + \eta \, \mathrm{KL}(\pi_{\theta_{old}} \| \pi_\theta)
      - \beta \, \mathrm{H}(\pi_{\phi_i(\theta)})

    r is the probability ratio of the policies adapted from :math:`\theta` and from
    :math:`\theta_{old}`. The KL is averaged over the policies before each adaptation step.

    Args:
      loop: from `rl.inner_loop`; ProMP's surrogate is `likelihood_ratio`.
      outer_optimizer: any optax transformation; ProMP's is `optax.adam(1e-3)`.
      num_epochs: optax steps per meta-batch.
      clip: :math:`\epsilon`.
      kl_penalty: :math:`\eta`.
      entropy_bonus: :math:`\beta`, which ProMP does not have: with it a policy of discrete actions
        explores longer.
      every_step: average the objective over the policies after every adaptation step, instead of
        taking the last one only.
      task_chunk: tasks per `vmap`, see `metajax.meta_learner`.
      mesh: devices that share the tasks, such as `metajax.task_mesh()`.

    Returns:
      A `MetaLearner` for episodes whose support is a task. `update` reports `objective` and
      `meta_gradient_norm` at the first epoch; `kl` of the adapted policies, `clipped`, the fraction
      of clipped ratios, and `improvement` of the objective, all after the last epoch; `return`,
      `entropy`, `env_steps` and `failures` as `maml_trpo`.

    Raises:
      ValueError: for arguments of the wrong kind or out of range.

    Example:

    >>> import jax, jax.numpy as jnp, metajax, optax
    >>> from metajax import rl
    >>> from metajax.rl.navigation import navigation
    >>> env = navigation()._replace(horizon=5)
    >>> model = rl.GaussianMLP(env.action_size, hidden=())
    >>> loop = rl.inner_loop(model.apply, rl.sampler(env, model.apply, 4), optax.sgd(0.1))
    >>> learner = rl.promp(loop, optax.adam(1e-3))
    >>> state = learner.init(model.init(jax.random.key(0), jnp.zeros(2)))
    >>> episodes = metajax.tasks.meta_batch(rl.Tasks(env.sample_tasks), 2, jax.random.key(1))
    >>> state, metrics = jax.jit(learner.update)(state, episodes, jax.random.key(2))
    >>> 0 <= float(metrics["clipped"]) <= 1
    True

    References:
      Rothfuss et al., `ProMP: Proximal Meta-Policy Search <https://arxiv.org/abs/1810.06784>`_,
      2019, equation 10 and algorithm 1; Schulman et al., `Proximal Policy Optimization Algorithms
      <https://arxiv.org/abs/1707.06347>`_, 2017, equation 7.
    """
    check_kind("promp: loop", loop, InnerLoop, "from rl.inner_loop")
    check_optimizer("promp: outer_optimizer", outer_optimizer)
    outer_optimizer = optax.with_extra_args_support(outer_optimizer)
    num_epochs = check_integer("promp: num_epochs", num_epochs)
    check_number("promp: clip", clip, "(0, inf]")
    check_number("promp: kl_penalty", kl_penalty, "[0, inf)")
    check_number("promp: entropy_bonus", entropy_bonus, "[0, inf)")

    def objective(meta_params: MetaParams, collected: Collected) -> tuple[Array, Metrics]:
        trajectories = outer_trajectories(collected, every_step)
        new = adapted_distributions(loop, meta_params, collected, every_step)
        ratio = probability_ratios(trajectories, new)
        bounded = jnp.clip(ratio, 1 - clip, 1 + clip)
        gain = jnp.minimum(ratio * trajectories.advantages, bounded * trajectories.advantages)
        outside = (ratio != bounded).astype(ratio.dtype)
        gained = mean_over_steps(gain + entropy_bonus * new.entropy(), trajectories)
        penalty = kl_penalty * inner_kl(loop, meta_params, collected.support)
        return penalty - gained, {
            "kl": mean_kl(trajectories, new),
            "clipped": mean_over_steps(outside, trajectories),
        }

    mean_objective = mean_over_tasks(objective, task_chunk, mesh)
    gradient = gradient_over_tasks(objective, task_chunk, mesh)

    def update(state: MetaState, episodes: Episode, rng: Key) -> tuple[MetaState, Metrics]:
        check_opt_state(state, outer_optimizer.init)
        batch, metrics = collect_batch(loop, state, episodes, rng, task_chunk, mesh)

        def epoch(carry, _):
            meta_params, opt_state = carry
            (value, _), g = gradient(meta_params, batch)
            updates, opt_state = outer_optimizer.update(g, opt_state, meta_params, value=value)
            meta_params = optax.apply_updates(meta_params, updates)
            return (meta_params, opt_state), (value, optax.tree.norm(g))

        (meta_params, opt_state), (values, norms) = jax.lax.scan(
            epoch, (state.meta_params, state.opt_state), length=num_epochs
        )
        last, measured = mean_objective(meta_params, batch)
        metrics |= measured | {
            "objective": values[0],
            "meta_gradient_norm": norms[0],
            "improvement": values[0] - last,
        }
        return MetaState(meta_params, opt_state, (), state.step + 1), metrics

    return make_learner(loop, checked_init(outer_optimizer), update)
