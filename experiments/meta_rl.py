"""Meta-reinforcement learning: settings, algorithms by name, evaluation of policies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

import metajax
from experiments import plots, skeleton, supervised, tables
from experiments.command import Command, Experiment, as_usage_error
from experiments.settings import Training, UsageError, setting
from experiments.skeleton import Evaluation, Method
from metajax import rl, train
from metajax.tasks import meta_batch

REWARD_UNIT = "mean return"
# Settings of the training.
UNTRAINED = (
    "num_meta_steps",
    "meta_batch_size",
    "num_steps",
    "outer_schedule",
    "every_step",
    "validation_steps",
    "validation_tasks",
    "validate_every",
    "checkpoint_every",
    "steps_per_call",
)
TRUST_REGION = ("maml", "fomaml", "pretrain", "oracle", "context")


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
        **shared,
    ),
    "pretrain": _trust_region,
    "oracle": _trust_region,
    "random": _trust_region,
    "context": _trust_region,
    "reptile": lambda s, loop, shared: rl.reptile(
        loop, optax.sgd(supervised.make_schedule(s, s.outer_learning_rate)), **shared
    ),
}


@dataclasses.dataclass(frozen=True)
class MetaRL(Training):
    """Meta-reinforcement learning."""

    algorithm: str = setting(
        "maml",
        "The meta-learning algorithm, or a baseline: joint training (pretrain), a policy that is "
        "told the task (oracle) or not trained (random), adaptable inputs (context).",
        choices=tuple(ALGORITHMS),
    )
    trajectories: int = setting(20, "Trajectories per task and gradient step in training.", least=1)
    outer_learning_rate: float = setting(
        1e-3,
        "Step size of the outer optimizer.",
        least=0.0,
        only={"algorithm": ("promp", "reptile")},
    )
    step_decay: float = setting(
        0.5, "Factor on the step size after the first adaptation step.", least=0.0
    )
    surrogate: str = setting(
        "log_likelihood", "The loss of an adaptation step.", choices=tuple(sorted(rl.SURROGATES))
    )
    every_step: bool = setting(False, "Average the meta-objective over all adaptation steps.")
    max_kl: float = setting(
        0.01, "Size of the trust region.", least=0.0, only={"algorithm": TRUST_REGION}
    )
    curvature_stride: int = setting(
        4,
        "The curvature of the trust region uses every n-th trajectory.",
        least=1,
        only={"algorithm": TRUST_REGION},
    )
    gae_lambda: float = setting(
        1.0, "Lambda of the generalized advantage estimates.", least=0.0, most=1.0
    )
    init_std: float = setting(1.0, "Initial standard deviation of the policy.", least=0.0)
    min_std: float = setting(1e-6, "Least standard deviation of the policy.", least=0.0)
    context_size: int = setting(
        5,
        "Adaptable numbers appended to the observation.",
        least=1,
        only={"algorithm": ("context",)},
    )
    validation_tasks: int = setting(40, "Tasks of the meta-validation.", least=1)
    eval_trajectories: int = setting(
        40, "Trajectories per task and gradient step in the evaluation.", least=1, evaluation=True
    )

    def check(self) -> None:
        super().check()
        if not 0 < self.init_std >= self.min_std:
            raise UsageError(
                f"--init_std={self.init_std} must be positive, and at least --min_std="
                f"{self.min_std}, the least standard deviation of the policy."
            )
        if self.algorithm in TRUST_REGION and not self.max_kl:
            raise UsageError("--max_kl=0: the trust region must have a size.")
        if self.algorithm == "reptile" and not self.num_steps:
            raise UsageError("--num_steps=0: reptile needs at least one step.")

    def unused(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        if self.algorithm == "random":
            yield "a random policy is not trained", UNTRAINED
        most = max(self.num_steps, self.validation_steps, self.num_eval_steps)
        if not most:
            yield "no gradient step is taken", ("inner_learning_rate", "surrogate")
        if most < 2:
            yield "no second gradient step is taken", ("step_decay",)
        if self.algorithm == "reptile":
            yield "reptile has no meta-objective", ("every_step",)
        if self.num_steps < 2:
            yield "training takes no second gradient step", ("every_step",)
        yield from super().unused()


# Finn 2017, section 5.3 and appendix A.2: what all presets start from.
FINN: dict[str, Any] = {
    "num_meta_steps": 500,
    "meta_batch_size": 20,
    "inner_learning_rate": 0.1,
    "validation_steps": 3,
    "validate_every": 10,
    "checkpoint_every": 50,
    "eval_tasks": 40,
    "num_eval_steps": 4,
}
# The oracle knows the task: it does not adapt.
BY_ALGORITHM: dict[str, dict[str, Any]] = {
    "promp": {"surrogate": "likelihood_ratio"},
    "pretrain": {"num_steps": 0},
    "oracle": {"num_steps": 0, "validation_steps": 0, "num_eval_steps": 0},
    "reptile": {"outer_learning_rate": 0.1},
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


def make_agent(settings: MetaRL, env: rl.Env, mesh: Mesh | None = None) -> Agent:
    """Makes the agent of some settings."""
    if settings.algorithm == "oracle":
        env = rl.oracle(env)
    model: Any = rl.CategoricalMLP(env.action_size)
    if not env.discrete:
        with np.errstate(divide="ignore"):  # a bound of 0 is none
            init_log_std, min_log_std = map(float, np.log([settings.init_std, settings.min_std]))
        model = rl.GaussianMLP(env.action_size, init_log_std=init_log_std, min_log_std=min_log_std)
    init: Callable[..., Any] = model.init
    policy: rl.Policy = model.apply
    if settings.algorithm == "context":
        init, policy = rl.with_context(init, policy, settings.context_size)
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


def make_sampler(settings: MetaRL, env: rl.Env, policy: rl.Policy, trajectories: int) -> Any:
    return rl.sampler(env, policy, trajectories, gae_lambda=settings.gae_lambda)


def rebuilt(settings: MetaRL, agent: Agent, num_steps: int, trajectories: int) -> rl.InnerLoop:
    """The agent's inner loop with another number of steps and trajectories."""
    sample = make_sampler(settings, agent.env, agent.policy, trajectories)
    return agent.learner.inner.rebuild(num_steps=num_steps, sample=sample)


def make_scorer(
    settings: MetaRL, agent: Agent, num_steps: int, mesh: Mesh | None
) -> tuple[metajax.Adapt, Any, dict[str, Any]]:
    """The arguments of `metajax.evaluate` for the mean return after each gradient step."""
    inner = rebuilt(settings, agent, num_steps, settings.eval_trajectories)
    metric = rl.policy_return(agent.env, agent.policy, settings.eval_trajectories)
    return inner.collect, metric, {"task_chunk": settings.task_chunk or None, "mesh": mesh}


def build(
    make_env: Callable[[Any], rl.Env],
    draw: Callable[[Command, Agent, metajax.MetaState, Path], None],
    command: Command,
) -> Method:
    """The method of a command."""
    settings: MetaRL = command.settings
    with as_usage_error():
        agent = make_agent(settings, make_env(settings), command.mesh)
        tasks = rl.Tasks(agent.env.sample_tasks)
        adapt, metric, shared = make_scorer(settings, agent, settings.num_eval_steps, command.mesh)
        validated_adapt, validated_metric, _ = make_scorer(
            settings, agent, settings.validation_steps, command.mesh
        )
    key = jax.random.key(settings.seed)
    trains = settings.algorithm != "random"

    def measure(state, tasks, rng):
        # The mean over all steps, for policies that are good after one step and after several.
        task_rng, rng = jax.random.split(rng)
        episodes = meta_batch(tasks, settings.validation_tasks, task_rng)
        mean = metajax.evaluate(validated_adapt, validated_metric, state, episodes, rng, **shared)[
            "mean"
        ]
        return {"return": jnp.mean(mean[min(1, len(mean) - 1) :]), "returns": mean}

    score = train.scorer(adapt, metric, **shared)

    def rescore(state: metajax.MetaState) -> dict[str, Any]:
        untrained = agent.learner.init(agent.params)
        return {
            name: skeleton.as_lists(
                score(each, tasks, settings.eval_tasks, jax.random.fold_in(key, 2))
            )
            for name, each in (("return", state), ("random", untrained))
        }

    def evaluate(fitted: train.FitResult) -> Evaluation:
        rows = rescore(fitted.best)
        speed = {}
        if trains and settings.num_meta_steps:
            speed = {"env_steps_per_second": env_steps_per_second(fitted, command.workdir)}
        title = f"{REWARD_UNIT} on {settings.eval_tasks} unseen tasks after each gradient step"
        return Evaluation(rows, tables.by_step(title, rows), speed)

    def figures(folder: Path, fitted: train.FitResult, evaluation: Evaluation) -> None:
        if trains:
            plots.training_curve(
                folder / "training.png",
                skeleton.training_metrics(command),
                {"validation/return": "meta-validation, mean over gradient steps"},
                ylabel=REWARD_UNIT,
            )
        rows = evaluation.rows
        plots.adaptation_curves(
            folder / "learning_curve.png",
            {settings.algorithm: rows["return"], "random": rows["random"]},
            ylabel=REWARD_UNIT,
            title=f"{command.experiment}, {settings.eval_tasks} unseen tasks",
        )
        draw(command, agent, fitted.best, folder)

    validation = train.Validation(tasks, measure, "return", "max")
    return Method(
        agent.learner,
        agent.params,
        tasks,
        validation,
        evaluate,
        rescore,
        figures,
        trains=trains,
        progress_metric="return",
    )


def experiment(
    name: str,
    summary: str,
    presets: Any,
    make_env: Callable[[Any], rl.Env],
    draw: Callable[[Command, Agent, metajax.MetaState, Path], None],
) -> Experiment:
    """A launcher of meta-reinforcement learning."""
    columns = ("algorithm", "num_meta_steps", "meta_batch_size", "trajectories")
    made = partial(build, make_env, draw)
    return Experiment(
        name,
        summary,
        presets,
        lambda command: skeleton.run(command, made),
        lambda presets: print(tables.presets(presets, columns)),
        {type(each): BY_ALGORITHM for each in presets.values()},
        build=made,
    )


def env_steps_per_second(fitted: train.FitResult, workdir: Path) -> float:
    """Environment steps of meta-training per second, with validations in the time."""
    lines = [x for x in train.read_metrics(workdir) if "train/env_steps" in x]
    steps, last = 0.0, 0
    for line in lines:
        steps += line["train/env_steps"] * (line["step"] - last)
        last = line["step"]
    return steps / fitted.wall_seconds


def adapted_trajectories(
    settings: MetaRL, agent: Agent, state: metajax.MetaState, num_tasks: int, num_steps: int
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
