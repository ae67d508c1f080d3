"""Policies in their environments, and the algorithms of meta-reinforcement learning by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

import metajax
from experiments import supervised
from metajax import rl
from metajax.rl.base import as_recurrent


def _trust_region(s: Any, loop: rl.InnerLoop, shared: dict[str, Any]) -> metajax.MetaLearner:
    return rl.maml_trpo(
        loop,
        max_kl=supervised.make_schedule(s, s.max_kl),
        curvature_stride=s.curvature_stride,
        every_step=s.every_step,
        **shared,
    )


# Every algorithm by its public constructor.
ALGORITHMS: dict[str, Callable[[Any, Any, dict[str, Any]], metajax.MetaLearner]] = {
    "maml": _trust_region,
    "fomaml": _trust_region,
    "promp": lambda s, loop, shared: rl.promp(
        loop,
        optax.adam(supervised.make_schedule(s, s.outer_learning_rate)),
        every_step=s.every_step,
        entropy_bonus=s.entropy_bonus,
        **shared,
    ),
    "pretrain": _trust_region,
    "oracle": _trust_region,
    "random": _trust_region,
    "context": _trust_region,
    "reptile": lambda s, loop, shared: rl.reptile(
        loop, optax.sgd(supervised.make_schedule(s, s.outer_learning_rate)), **shared
    ),
    "rl2": lambda s, loop, shared: rl.promp(
        loop,
        optax.adam(supervised.make_schedule(s, s.outer_learning_rate)),
        entropy_bonus=s.entropy_bonus,
        **shared,
    ),
}


class Agent(NamedTuple):
    """A policy in its environment.

    Attributes:
      env: the environment.
      params: where training starts.
      policy: `(params, observations) -> Distribution`.
      learner: the outer loop, with its inner loop.
    """

    env: rl.Env
    params: Any
    policy: rl.Policy
    learner: metajax.MetaLearner


def make_agent(settings: Any, env: rl.Env, mesh: Mesh | None = None) -> Agent:
    """Makes the agent of some settings."""
    if settings.algorithm == "oracle":
        env = rl.oracle(env)
    if settings.algorithm == "rl2":
        env = rl.trials(env, settings.episodes)
    model: Any = rl.CategoricalMLP(env.action_size)
    if not env.discrete:
        with np.errstate(divide="ignore"):  # a bound of 0 is none
            init_log_std, min_log_std = map(float, np.log([settings.init_std, settings.min_std]))
        model = rl.GaussianMLP(env.action_size, init_log_std=init_log_std, min_log_std=min_log_std)
    init: Callable[..., Any] = model.init
    policy: Any = model.apply
    if settings.algorithm == "context":
        init, policy = rl.with_context(init, policy, settings.context_size)
    if settings.algorithm == "rl2":
        init, policy = rl.with_memory(init, policy, settings.memory_size)
    params = init(
        jax.random.fold_in(jax.random.key(settings.seed), 1), jnp.zeros(env.observation_size)
    )
    rate = optax.piecewise_constant_schedule(settings.inner_learning_rate, {1: settings.step_decay})
    optimizer: Any = optax.sgd(rate)
    if settings.algorithm == "context":
        optimizer = metajax.adapt_only(optimizer, rl.is_context)
    first_order = settings.algorithm in ("fomaml", "reptile")
    inner = rl.inner_loop(
        policy,
        make_sampler(settings, env, policy, settings.trajectories),
        optimizer,
        settings.num_steps,
        surrogate=rl.SURROGATES[settings.surrogate],
        meta_gradient=metajax.first_order() if first_order else metajax.second_order(),
    )
    shared = {"task_chunk": settings.task_chunk or None, "mesh": mesh}
    learner = ALGORITHMS[settings.algorithm](settings, inner, shared)
    return Agent(env, params, policy, learner)


def make_sampler(settings: Any, env: rl.Env, policy: rl.Policy, trajectories: int) -> Any:
    features = rl.observation_features
    if settings.baseline == "time":
        features = rl.trial_features if settings.algorithm == "rl2" else rl.time_features
    return rl.sampler(env, policy, trajectories, gae_lambda=settings.gae_lambda, features=features)


def rebuilt(settings: Any, agent: Agent, num_steps: int, trajectories: int) -> rl.InnerLoop:
    """The agent's inner loop with another number of steps and trajectories."""
    sample = make_sampler(settings, agent.env, agent.policy, trajectories)
    return agent.learner.inner.rebuild(num_steps=num_steps, sample=sample)


def adapted_trajectories(
    settings: Any, agent: Agent, state: metajax.MetaState, num_tasks: int, num_steps: int
) -> tuple[Any, rl.Trajectories]:
    """Tasks, and one trajectory of each before and after every gradient step."""
    inner = rebuilt(settings, agent, num_steps, settings.trajectories)

    def roll_out(task, rng):
        adapt_rng, roll_rng = jax.random.split(rng)

        def probe(params, step):
            return rl.rollout(agent.env, agent.policy, params, task, roll_rng, 1)

        return inner.collect.apply(state.meta_params, task, adapt_rng, probe=probe)[1].probe

    task_rng, rng = jax.random.split(jax.random.fold_in(jax.random.key(settings.seed), 3))
    tasks = agent.env.sample_tasks(task_rng, num_tasks)
    return tasks, jax.jit(jax.vmap(roll_out))(tasks, jax.random.split(rng, num_tasks))


def played(agent: Agent, params: Any, task: Any, rng: jax.Array) -> rl.EnvStep:
    """One trajectory with all that the environment's state holds, leaves `[horizon, ...]`."""
    policy = as_recurrent(agent.policy)

    def body(carry, rng):
        step, memory = carry
        memory, distribution = policy.step(params, memory, step.observation)
        after = agent.env.step(step, distribution.sample(rng))
        return (after, memory), after

    start = agent.env.reset(rng, task), policy.start(params, ())
    return jax.lax.scan(body, start, jax.random.split(rng, agent.env.horizon))[1]
