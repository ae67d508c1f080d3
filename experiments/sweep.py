"""Many short runs on 5-shot 5-way Omniglot: what figures 3 and 4 of Nichol 2018 share.

The hyper-parameters are those of tables 5 and 6: SGD in both loops, no meta-batches, the outer step
size annealed to 0.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from absl import flags

import metajax
from experiments import common, few_shot, protocols
from metajax import train

flags.adopt_module_key_flags(few_shot)

# The paper's inner step size of 0.003 is on a sum over a mini-batch: on its mean it is as many
# times more as there are examples in it.
SUMMED_LEARNING_RATE = 3e-3
SETTINGS: common.Config = {
    **protocols.PRESETS["omniglot"]["nichol2018/omniglot_5w5s"],
    "train_shots": 20,
    "train_on": "train",
    "queries": 0,
    "meta_batch_size": 1,
    "num_meta_steps": 40_000,
    "num_steps": 4,
    "inner_batch": 25,
    "inner_optimizer": "sgd",
    "inner_learning_rate": 25 * SUMMED_LEARNING_RATE,
    "carry": "none",
    "eval_inner_batch": 25,
    "validation_steps": 5,
    "num_eval_steps": 5,
    "eval_tasks": 1_000,
    "steps_per_call": 200,
    "validate_every": 2_000,
    "checkpoint_every": 2_000,
}


class Run(NamedTuple):
    """One curve or one point of a figure.

    Attributes:
      name: of its folder in the workdir.
      changes: to the settings of the sweep.
      objective: `loss -> objective` in place of the configured one.
    """

    name: str
    changes: common.Config
    objective: Callable[[metajax.LossFn], metajax.Objective] | None = None


def resolve(experiment: str, changes: common.Config) -> common.Settings:
    """Reads the flags of a sweep, which has one preset, the paper's."""
    name = f"nichol2018/{experiment}"
    return common.resolve(experiment, {name: {**SETTINGS, **changes}}, name, {})


def execute(settings: common.Settings, runs: list[Run]) -> dict[str, Any] | None:
    """Trains the runs that are not finished, each in a folder of the workdir.

    Returns:
      By name the `accuracy` of the last state on the meta-test tasks, transductive, with `ci95`,
      and the `curve` of meta-steps and accuracies on the meta-validation tasks. `None` if it was
      told to stop.
    """
    config, evaluation, workdir = settings
    data = few_shot.load(config)
    few_shot.look_for_leaks(
        settings, data, *(few_shot.tasks_of(config, data, part) for part in ("train", "test"))
    )
    found = {}
    for number, run in enumerate(runs, 1):
        changed = common.Settings({**config, **run.changes}, evaluation, workdir / run.name)
        if _result(changed) is None:
            print(f"\n{number} of {len(runs)}: {run.name}", flush=True)
            if not _train(changed, data, run.objective):
                return None
        found[run.name] = _result(changed)
    return found


def _result(settings: common.Settings) -> Any:
    """The evaluation of a run that is finished, `None` where there is none of these settings."""
    config, evaluation, workdir = settings
    path = workdir / "result.json"
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    same = all(
        result["config"].get(key) == value for key, value in {**config, **evaluation}.items()
    )
    return result["evaluation"] if same else None


def _train(settings: common.Settings, data: few_shot.Data, objective: Any) -> bool:
    config, evaluation, workdir = settings
    model = few_shot.network_of(config)(config["ways"])
    loss = common.classification_loss(model.apply)
    accuracy = metajax.accuracy(model.apply)
    with common.as_usage_error():
        learner = common.learner(config, loss)
        if objective is not None:
            learner = metajax.meta_learner(
                common.inner_loop(config, loss, config["num_steps"], config["inner_batch"]),
                objective(loss),
                common.outer_optimizer(config),
                task_chunk=config["task_chunk"] or None,
                mesh=common.mesh(),
            )
        adapt, validation_adapt = (
            common.inner_loop(config, loss, steps, config["eval_inner_batch"])
            for steps in (evaluation["num_eval_steps"], config["validation_steps"])
        )
    tasks, validation_tasks, test_tasks = (
        few_shot.tasks_of(config, data, part) for part in ("train", "validation", "test")
    )
    key = jax.random.key(config["seed"])
    params = model.init(jax.random.fold_in(key, 1), few_shot.image_of(data))
    measure = few_shot.measure_with(config, validation_adapt, accuracy)
    fitted = common.fit_or_load(
        settings, learner, params, tasks, train.Validation(validation_tasks, measure, "accuracy")
    )
    if fitted is None:
        return False
    # With the step size annealed to 0 it is the last state that counts.
    rows = few_shot.test(settings, {"transductive": accuracy}, adapt, fitted.state, test_tasks)
    lines = [line for line in train.read_metrics(workdir) if "validation/accuracy" in line]
    common.write_result(
        settings,
        fitted,
        {
            "accuracy": rows["transductive"]["mean"][-1],
            "ci95": rows["transductive"]["ci95"][-1],
            "curve": [(line["step"], line["validation/accuracy"]) for line in lines],
        },
    )
    return True


def write(settings: common.Settings, runs: list[Run], found: dict[str, Any], **extra: Any) -> None:
    """Writes `result.json` of the whole sweep."""
    config, evaluation, workdir = settings
    seconds = [
        json.loads((workdir / run.name / "result.json").read_text())["wall_seconds"] for run in runs
    ]
    train.write_json(
        workdir / "result.json",
        {
            "experiment": config["experiment"],
            "algorithm": config["algorithm"],
            "preset": config["preset"],
            "config": {**config, **evaluation},
            "command": common.command(config, evaluation),
            "meta_steps": config["num_meta_steps"],
            "wall_seconds": sum(seconds),
            **extra,
            **train.provenance(),
            "evaluation": found,
        },
    )
