"""Meta-reinforcement learning: settings, algorithms by name, evaluation of policies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

import metajax
from experiments import plots, skeleton, tables
from experiments.agents import ALGORITHMS, Agent, make_agent, rebuilt
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


@dataclasses.dataclass(frozen=True)
class MetaRL(Training):
    """Meta-reinforcement learning."""

    algorithm: str = setting(
        "maml",
        "The meta-learning algorithm, where rl2 adapts by a memory instead of gradient steps; or a "
        "baseline: joint training (pretrain), a policy that is told the task (oracle) or not "
        "trained (random), adaptable inputs (context).",
        choices=tuple(ALGORITHMS),
    )
    trajectories: int = setting(20, "Trajectories per task and gradient step in training.", least=1)
    outer_learning_rate: float = setting(
        1e-3,
        "Step size of the outer optimizer.",
        least=0.0,
        only={"algorithm": ("promp", "reptile", "rl2")},
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
    entropy_bonus: float = setting(
        0.0,
        "Factor of the policy's entropy in the meta-objective.",
        least=0.0,
        only={"algorithm": ("promp", "rl2")},
    )
    gae_lambda: float = setting(
        1.0, "Lambda of the generalized advantage estimates.", least=0.0, most=1.0
    )
    baseline: str = setting(
        "observations",
        "What the baseline of the advantages sees: observations and time, or the time alone; with "
        "rl2 that is the time in the episode, too.",
        choices=("observations", "time"),
    )
    init_std: float = setting(1.0, "Initial standard deviation of the policy.", least=0.0)
    min_std: float = setting(1e-6, "Least standard deviation of the policy.", least=0.0)
    context_size: int = setting(
        5,
        "Adaptable numbers appended to the observation.",
        least=1,
        only={"algorithm": ("context",)},
    )
    episodes: int = setting(
        4,
        "Episodes that the policy plays in one task, with one memory; a trajectory is all of them.",
        least=1,
        only={"algorithm": ("rl2",)},
    )
    memory_size: int = setting(64, "Units of the memory.", least=1, only={"algorithm": ("rl2",)})
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
        of_steps = ("num_steps", "validation_steps", "num_eval_steps")
        if self.algorithm == "rl2" and any(getattr(self, name) for name in of_steps):
            zero = " ".join(f"--{name}=0" for name in of_steps)
            raise UsageError(f"rl2 takes no gradient steps: {zero}.")

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
    "rl2": {"num_steps": 0, "validation_steps": 0, "num_eval_steps": 0},
}


def make_scorer(
    settings: MetaRL, agent: Agent, num_steps: int, mesh: Mesh | None
) -> tuple[metajax.Adapt, Any, dict[str, Any]]:
    """The arguments of `metajax.evaluate` for the mean return after each gradient step.

    The metric of RL2 is the return of each episode.
    """
    inner = rebuilt(settings, agent, num_steps, settings.eval_trajectories)
    rolled_out = agent.env, agent.policy, settings.eval_trajectories
    metric: Any = rl.policy_return(*rolled_out)
    if settings.algorithm == "rl2":
        metric = rl.episode_returns(*rolled_out, num_episodes=settings.episodes)
    return inner.collect, metric, {"task_chunk": settings.task_chunk or None, "mesh": mesh}


def build(
    make_env: Callable[[Any], rl.Env],
    draw: Callable[[Command, Agent, metajax.MetaState, Path], None],
    make_test_tasks: Callable[[Any], Any] | None,
    command: Command,
) -> Method:
    """The method of a command."""
    settings: MetaRL = command.settings
    with as_usage_error():
        agent = make_agent(settings, make_env(settings), command.mesh)
        tasks = test_tasks = rl.Tasks(agent.env.sample_tasks)
        if make_test_tasks is not None:
            test_tasks = rl.Tasks(make_test_tasks(settings))
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
        mean = by_adaptation(
            metajax.evaluate(validated_adapt, validated_metric, state, episodes, rng, **shared)
        )["mean"]
        return {"return": jnp.mean(mean[min(1, len(mean) - 1) :]), "returns": mean}

    score = train.scorer(adapt, metric, **shared)

    def rescore(state: metajax.MetaState) -> dict[str, Any]:
        untrained = agent.learner.init(agent.params)
        return {
            name: skeleton.as_lists(
                by_adaptation(
                    score(each, test_tasks, settings.eval_tasks, jax.random.fold_in(key, 2))
                )
            )
            for name, each in (("return", state), ("random", untrained))
        }

    def evaluate(fitted: train.FitResult) -> Evaluation:
        rows = rescore(fitted.best)
        speed = {}
        if trains and settings.num_meta_steps:
            speed = {"env_steps_per_second": env_steps_per_second(fitted, command.workdir)}
        title = f"{REWARD_UNIT} on {settings.eval_tasks} unseen tasks, by {adapted(settings)}s"
        return Evaluation(rows, tables.by_step(title, rows), speed)

    def figures(folder: Path, fitted: train.FitResult, evaluation: Evaluation) -> None:
        if trains:
            plots.training_curve(
                folder / "training.png",
                skeleton.training_metrics(command),
                {"validation/return": f"meta-validation, mean over {adapted(settings)}s"},
                ylabel=REWARD_UNIT,
            )
        rows = evaluation.rows
        plots.adaptation_curves(
            folder / "learning_curve.png",
            {settings.algorithm: rows["return"], "random": rows["random"]},
            ylabel=REWARD_UNIT,
            title=f"{command.experiment}, {settings.eval_tasks} unseen tasks",
            xlabel=f"{adapted(settings)}s",
        )
        draw(command, agent, fitted.best, folder)

    validation = train.Validation(test_tasks, measure, "return", "max")
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
    make_test_tasks: Callable[[Any], Any] | None = None,
) -> Experiment:
    """A launcher of meta-reinforcement learning.

    `make_test_tasks(settings)` samples the tasks of validation and testing, where these are not
    drawn from the same distribution as those of training.
    """
    columns = ("algorithm", "num_meta_steps", "meta_batch_size", "trajectories")
    made = partial(build, make_env, draw, make_test_tasks)
    return Experiment(
        name,
        summary,
        presets,
        lambda command: skeleton.run(command, made),
        lambda presets: print(tables.presets(presets, columns)),
        {type(each): BY_ALGORITHM for each in presets.values()},
        build=made,
    )


def adapted(settings: MetaRL) -> str:
    """What a policy adapts by."""
    return "episode" if settings.algorithm == "rl2" else "gradient step"


def by_adaptation(scores: dict[str, Any]) -> dict[str, Any]:
    """Scores after each gradient step `[num_steps + 1]`, or of each episode `[num_episodes]`."""
    if scores["mean"].ndim == 1:
        return scores
    # What has increased since the first episode is not among the scores.
    parts = {name: scores[name] for name in ("mean", "ci95", "quantiles")}
    return jax.tree.map(lambda x: x[0], parts) | {"num_tasks": scores["num_tasks"]}


def env_steps_per_second(fitted: train.FitResult, workdir: Path) -> float:
    """Environment steps of meta-training per second, with validations in the time."""
    lines = [x for x in train.read_metrics(workdir) if "train/env_steps" in x]
    steps, last = 0.0, 0
    for line in lines:
        steps += line["train/env_steps"] * (line["step"] - last)
        last = line["step"]
    return steps / fitted.wall_seconds
