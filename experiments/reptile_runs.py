"""Many short runs on 5-shot 5-way Omniglot, for figures 3 and 4 of Nichol 2018.

The hyper-parameters are those of tables 5 and 6: SGD in both loops, no meta-batches, the outer step
size annealed to 0.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import metajax
from experiments import few_shot, image_data, protocols, skeleton, supervised
from experiments.classification import Omniglot
from experiments.command import Command
from experiments.settings import UsageError, evaluation_config, training_config
from experiments.skeleton import Evaluation, Method
from metajax import train
from metajax.data import Splits

# The paper's inner step size of 0.003 is for the sum over a mini-batch. For the mean it is
# multiplied by the number of examples.
SUMMED_LEARNING_RATE = 3e-3
# What the runs decide themselves.
HIDDEN = ("algorithm", "tail", "choose", "train_on", "outer_loss")


@dataclasses.dataclass(frozen=True)
class Sweep(Omniglot):
    """Runs that are validated for their curves, while the last state is tested."""

    @property
    def validates(self) -> bool:
        return True


SETTINGS = dataclasses.replace(
    Sweep(**vars(protocols.nichol_omniglot(5, 5))),
    train_shots=20,
    train_on="train",
    queries=0,
    meta_batch_size=1,
    num_meta_steps=40_000,
    num_steps=4,
    inner_batch=25,
    inner_optimizer="sgd",
    inner_learning_rate=25 * SUMMED_LEARNING_RATE,
    carry="none",
    eval_inner_batch=25,
    validation_steps=5,
    num_eval_steps=5,
    eval_tasks=1_000,
    steps_per_call=200,
    validate_every=2_000,
    checkpoint_every=2_000,
)


class Run(NamedTuple):
    """One curve or one point of a figure.

    Attributes:
      name: its folder in the workdir.
      changes: changes to the settings of the sweep.
      objective: replaces the algorithm's objective.
    """

    name: str
    changes: dict[str, Any]
    objective: metajax.Objective | None = None


def execute(command: Command, runs: list[Run]) -> dict[str, Any] | int:
    """Trains the runs that are not finished, each in a folder of the workdir.

    Returns:
      By name the `accuracy` of the last state on the meta-test tasks, transductive, with `ci95`,
      and the `curve` of meta-steps and accuracies on the meta-validation tasks; or the exit status
      if a signal stopped it.
    """
    if command.evaluates_only:
        raise UsageError(
            "--mode=eval is for launchers of single runs. To evaluate one of these runs anew, "
            "remove its result.json, and repeat the command without --mode."
        )
    for run in runs:
        dataclasses.replace(command.settings, **run.changes).check()
    with train.claimed(command.workdir, command.config):
        return _execute(command, runs)


def _execute(command: Command, runs: list[Run]) -> dict[str, Any] | int:
    data = image_data.load(command.settings, command.launch.data_dir)
    train_tasks, test_tasks = (
        image_data.make_tasks(command.settings, data, part) for part in ("train", "test")
    )
    image_data.look_for_leaks(command, data, train_tasks, test_tasks)
    found = {}
    for number, run in enumerate(runs, 1):
        each = command._replace(
            settings=dataclasses.replace(command.settings, **run.changes),
            workdir=command.workdir / run.name,
        )
        wanted = {**training_config(each.settings), **evaluation_config(each.settings)}
        if (result := skeleton.finished(each.workdir, wanted)) is None:
            print(f"\n{number} of {len(runs)}: {run.name}", flush=True)
            with train.claimed(each.workdir, each.config):
                method = build(each, data, run.objective)
                fitted = skeleton.fit(each, method)
                if fitted.stopped_by:
                    return skeleton.stopped(command, fitted)
                # The step size is annealed to 0, so the last state is tested.
                fitted = fitted._replace(best=fitted.state)
                evaluation = method.evaluate(fitted)
                skeleton.write(each, each.workdir, fitted, evaluation)
            result = evaluation.rows
        found[run.name] = result
    return found


def build(command: Command, data: Splits, objective: metajax.Objective | None) -> Method:
    """One of the runs."""
    settings: Omniglot = command.settings
    trained = few_shot.meta_learning(command, data)
    learner = trained.learner
    if objective is not None:
        learner = metajax.meta_learner(
            learner.inner,
            objective,
            supervised.make_outer_optimizer(settings),
            task_chunk=settings.task_chunk or None,
            mesh=command.mesh,
        )
    validation_tasks, test_tasks = (
        image_data.make_tasks(settings, data, part) for part in ("validation", "test")
    )

    def evaluate(fitted: train.FitResult) -> Evaluation:
        metrics = {"transductive": trained.metrics["transductive"]}
        rows = few_shot.test(command, metrics, trained.adapt, fitted.best, test_tasks)
        lines = [x for x in train.read_metrics(command.workdir) if "validation/accuracy" in x]
        return Evaluation(
            {
                "accuracy": rows["transductive"]["mean"][-1],
                "ci95": rows["transductive"]["ci95"][-1],
                "curve": [(line["step"], line["validation/accuracy"]) for line in lines],
            },
            "",
        )

    validation = train.Validation(validation_tasks, trained.measure, "accuracy")
    return Method(
        learner,
        trained.params,
        trained.tasks,
        validation,
        evaluate,
        lambda state: {},
        lambda *args: None,
    )


def write(command: Command, runs: list[Run], found: dict[str, Any], **extra: Any) -> None:
    """Writes `result.json` of the whole sweep."""
    seconds = [
        train.read_json(command.workdir / run.name / "result.json")["wall_seconds"] for run in runs
    ]
    train.write_json(
        command.workdir / "result.json",
        {
            "experiment": command.experiment,
            "algorithm": command.settings.algorithm,
            "preset": command.preset,
            "config": {**command.config, **evaluation_config(command.settings)},
            "command": command.line,
            "meta_steps": command.settings.num_meta_steps,
            "wall_seconds": sum(seconds),
            **extra,
            **train.provenance(),
            "evaluation": found,
        },
    )
