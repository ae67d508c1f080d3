"""What the experiments in meta-reinforcement learning share: learners by name, the trainer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

import metajax
from experiments import common, plots
from metajax import rl, train
from metajax.tasks import meta_batch

ALGORITHMS = common.RL_ALGORITHMS
REWARD_UNIT = "mean return"

for _name, _help, _least in (
    ("trajectories", "Trajectories per task and gradient step in training.", 1),
    ("eval_trajectories", "Trajectories per task and gradient step in the evaluation.", 1),
    ("curvature_stride", "The trust region's curvature takes every so many-th trajectory.", 1),
    ("context_size", "Adaptable numbers appended to the observation (context).", 1),
):
    flags.DEFINE_integer(_name, None, _help + common.BY_PRESET, lower_bound=_least)
for _name, _help in (
    ("step_decay", "Factor on the step size after the first adaptation step."),
    ("max_kl", "Size of the trust region."),
    ("init_std", "Initial standard deviation of the policy."),
    ("min_std", "Least standard deviation of the policy."),
    ("gae_lambda", "Lambda of the generalized advantage estimates."),
):
    flags.DEFINE_float(_name, None, _help + common.BY_PRESET, lower_bound=0.0)
flags.DEFINE_enum(
    "surrogate", None, sorted(rl.SURROGATES), "The loss of an adaptation step" + common.BY_PRESET
)
flags.DEFINE_boolean(
    "every_step", None, "Judge the policies after every adaptation step" + common.BY_PRESET
)
# A finished run may be evaluated again with others.
EVALUATION = (*common.EVALUATION, "eval_trajectories")

# Finn 2017, section 5.3 and appendix A.2.
DEFAULTS: common.Config = {
    "algorithm": "maml",
    "seed": 0,
    "num_meta_steps": 500,
    "trajectories": 20,
    "num_steps": 1,
    "inner_learning_rate": 0.1,
    "step_decay": 0.5,
    "surrogate": "log_likelihood",
    "every_step": False,
    "max_kl": 0.01,
    "outer_schedule": "constant",
    "curvature_stride": 4,
    "outer_learning_rate": 1e-3,
    "gae_lambda": 1.0,
    "init_std": 1.0,
    "min_std": 1e-6,
    "context_size": 5,
    "task_chunk": 0,
    "validation_tasks": 40,
    "validation_steps": 3,
    "eval_tasks": 40,
    "num_eval_steps": 4,
    "eval_trajectories": 40,
}
# The oracle knows the task: it does not adapt.
BY_ALGORITHM: dict[str, common.Config] = {
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
      apply: `(params, observations) -> Distribution`.
      learner: the outer loop.
    """

    env: rl.Env
    params: Any
    apply: rl.Policy
    learner: metajax.MetaLearner


def agent(config: common.Config, env: rl.Env) -> Agent:
    """The configured agent."""
    algorithm = config["algorithm"]
    if algorithm == "oracle":
        env = rl.oracle(env)
    model = rl.GaussianMLP(
        env.action_size,
        init_log_std=float(np.log(config["init_std"])),
        min_log_std=float(np.log(config["min_std"])),
    )
    init: Callable[..., Any] = model.init
    apply: rl.Policy = model.apply
    if algorithm == "context":
        init, apply = rl.with_context(init, apply, config["context_size"])
    params = init(
        jax.random.fold_in(jax.random.key(config["seed"]), 1), jnp.zeros(env.observation_size)
    )
    adaptation = adaptation_of(config, env, apply, config["num_steps"], config["trajectories"])
    task_chunk, mesh = config["task_chunk"] or None, common.mesh()
    if algorithm == "promp":
        learner = rl.clipped(
            adaptation,
            optax.adam(common.outer_schedule(config, config["outer_learning_rate"])),
            every_step=config["every_step"],
            task_chunk=task_chunk,
            mesh=mesh,
        )
    elif algorithm == "reptile":
        learner = rl.displaced(
            adaptation,
            optax.sgd(common.outer_schedule(config, config["outer_learning_rate"])),
            task_chunk=task_chunk,
            mesh=mesh,
        )
    else:
        learner = rl.trust_region(
            adaptation,
            max_kl=common.outer_schedule(config, config["max_kl"]),
            curvature_stride=config["curvature_stride"],
            every_step=config["every_step"],
            task_chunk=task_chunk,
            mesh=mesh,
        )
    return Agent(env, params, apply, learner)


def adaptation_of(
    config: common.Config, env: rl.Env, apply: rl.Policy, num_steps: int, trajectories: int
) -> rl.Adaptation:
    """The configured adaptation, with the steps and trajectories of training or of evaluation."""
    rate = optax.piecewise_constant_schedule(
        config["inner_learning_rate"], {1: config["step_decay"]}
    )
    optimizer = optax.sgd(rate)
    if config["algorithm"] == "context":
        optimizer = metajax.adapting(optimizer, rl.is_context)
    first_order = config["algorithm"] in ("fomaml", "reptile")
    return rl.adaptation(
        apply,
        rl.sampler(env, apply, trajectories, gae_lambda=config["gae_lambda"]),
        optimizer,
        num_steps,
        surrogate=rl.SURROGATES[config["surrogate"]],
        meta_gradient=metajax.first_order() if first_order else metajax.second_order(),
    )


def evaluation_of(
    config: common.Config, agent: Agent, num_steps: int, trajectories: int
) -> Callable[..., dict[str, Any]]:
    """`(state, episodes, rng) -> mean return and interval after each gradient step`."""
    adaptation = adaptation_of(config, agent.env, agent.apply, num_steps, trajectories)
    metric = rl.policy_return(agent.env, agent.apply, trajectories)
    return partial(
        metajax.evaluate,
        adaptation.collect,
        metric,
        task_chunk=config["task_chunk"] or None,
        mesh=common.mesh(),
    )


def main(
    experiment: str,
    presets: common.Presets,
    default: str,
    environment: Callable[[common.Config], rl.Env],
    draw: Callable[[common.Settings, Agent, metajax.MetaState], None],
    by_algorithm: dict[str, common.Config] | None = None,
) -> None:
    """Trains, evaluates and draws, as the flags say."""
    if common.PRESET.value == "list":
        common.print_presets(
            presets, ("algorithm", "num_meta_steps", "meta_batch_size", "trajectories")
        )
        return
    settings = common.resolve(
        experiment, presets, default, by_algorithm or BY_ALGORITHM, ALGORITHMS, EVALUATION
    )
    config, evaluated, workdir = settings
    with common.as_usage_error():
        built = agent(config, environment(config))
        tasks = rl.Tasks(built.env.sample_tasks)
        scored = evaluation_of(
            config, built, evaluated["num_eval_steps"], evaluated["eval_trajectories"]
        )
    key = jax.random.key(config["seed"])

    validated = evaluation_of(
        config, built, config["validation_steps"], evaluated["eval_trajectories"]
    )

    def measure(state, tasks, rng):
        # Good after one step and after several: the mean over all. Never the test tasks.
        task_rng, rng = jax.random.split(rng)
        returns = validated(state, meta_batch(tasks, config["validation_tasks"], task_rng), rng)
        mean = returns["mean"]
        return {"return": jnp.mean(mean[min(1, len(mean) - 1) :]), "returns": mean}

    untrained = built.learner.init(built.params)
    if config["algorithm"] == "random":
        fitted = untrained_result(settings, untrained)
    else:
        validation = train.Validation(tasks, measure, "return", "max")
        result = common.fit_or_load(settings, built.learner, built.params, tasks, validation)
        if result is None:
            return
        fitted = result

    task_rng, rng = jax.random.split(jax.random.fold_in(key, 2))
    episodes = meta_batch(tasks, evaluated["eval_tasks"], task_rng)
    score = jax.jit(scored)
    rows = {
        name: common.as_lists(score(state, episodes, rng))
        for name, state in (("return", fitted.best), ("random", untrained))
    }
    speed = {}
    if config["algorithm"] != "random":
        speed = {"env_steps_per_second": env_steps_per_second(config, fitted, workdir)}
        plots.training_curve(
            workdir / "training.png",
            train.read_metrics(workdir),
            {"validation/return": "meta-validation, mean over gradient steps"},
            ylabel=REWARD_UNIT,
        )
    common.write_result(settings, fitted, rows, **speed)
    plots.adaptation_curves(
        workdir / "learning_curve.png",
        {config["algorithm"]: rows["return"], "random": rows["random"]},
        ylabel=REWARD_UNIT,
        title=f"{experiment}, {evaluated['eval_tasks']} unseen tasks",
    )
    draw(settings, built, fitted.best)
    common.print_table(
        f"{REWARD_UNIT} on {evaluated['eval_tasks']} unseen tasks after each gradient step", rows
    )
    print(
        f"\n{workdir / 'result.json'}, figures beside it; {fitted.wall_seconds:.0f} s of training"
    )


def untrained_result(settings: common.Settings, state: metajax.MetaState) -> train.FitResult:
    """What training would return, for the policy that is not trained."""
    train.write_json(settings.workdir / "config.json", settings.config)
    print(f"workdir: {settings.workdir}", flush=True)
    return train.FitResult(state, state, 0, {}, 0.0, None)


def env_steps_per_second(config: common.Config, fitted: train.FitResult, workdir) -> float:
    """Environment steps of meta-training per second of it, validations included."""
    lines = [x for x in train.read_metrics(workdir) if "train/env_steps" in x]
    steps, last = 0.0, 0
    for line in lines:
        steps += line["train/env_steps"] * (line["step"] - last)
        last = line["step"]
    return steps / fitted.wall_seconds


def adapted_trajectories(
    config: common.Config, agent: Agent, state: metajax.MetaState, num_tasks: int, num_steps: int
) -> tuple[Any, rl.Trajectories]:
    """Tasks, and one trajectory of each before and after every gradient step."""
    adaptation = adaptation_of(config, agent.env, agent.apply, num_steps, config["trajectories"])

    def of_task(task, rng):
        adapt_rng, roll_rng = jax.random.split(rng)

        def probe(params, step):
            return rl.rollout(agent.env, agent.apply, params, task, roll_rng, 1)

        return adaptation.collect.apply(state.meta_params, task, adapt_rng, probe=probe)[1].probe

    task_rng, rng = jax.random.split(jax.random.fold_in(jax.random.key(config["seed"]), 3))
    tasks = agent.env.sample_tasks(task_rng, num_tasks)
    return tasks, jax.jit(jax.vmap(of_task))(tasks, jax.random.split(rng, num_tasks))
