"""One run of any experiment: build, fit, evaluate, print, write, draw."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

import metajax
from experiments import settings as typed
from experiments.command import Command, as_usage_error
from experiments.settings import UsageError
from metajax import train
from metajax.train.weights import FILE


class Evaluation(NamedTuple):
    """The evaluation of a run.

    Attributes:
      rows: the entry `evaluation` of `result.json`.
      table: the same, for the console.
      extra: further entries of `result.json`.
      shown: further data for the figures.
    """

    rows: Mapping[str, Any]
    table: str
    extra: Mapping[str, Any] = {}
    shown: Any = None


class Method(NamedTuple):
    """A learner with everything that its training and evaluation need.

    Attributes:
      learner: the meta-learner.
      params: the initial parameters.
      tasks: the training tasks.
      validation: how the state to test is chosen; without it the last state is tested.
      evaluate: evaluates the trained learner.
      rescore: computes the rows of the evaluation that depend only on the learner's state.
      draw: writes the figures to a folder.
      trains: whether it is trained at all.
      progress_metric: the metric in the progress line, see `train.fit`.
    """

    learner: metajax.MetaLearner
    params: Any
    tasks: Any
    validation: train.Validation | None
    evaluate: Callable[[train.FitResult], Evaluation]
    rescore: Callable[[metajax.MetaState], Mapping[str, Any]]
    draw: Callable[[Path, train.FitResult, Evaluation], None]
    trains: bool = True
    progress_metric: str | None = None


def run(command: Command, build: Callable[[Command], Method]) -> int:
    """Executes a command and returns the exit status."""
    if not command.evaluates_only:
        claim(command)
    with as_usage_error():
        method = build(command)
    fitted = fit(command, method)
    if fitted.stopped_by:
        return stopped(command, fitted)
    print("evaluating", flush=True)
    evaluation = method.evaluate(fitted)
    print(evaluation.table)
    folder = command.workdir
    if command.evaluates_only:
        values = typed.evaluation_config(command.settings).values()
        folder /= "evaluations/" + "-".join(map(str, values))
    write(command, folder, fitted, evaluation)
    method.draw(folder, fitted, evaluation)
    print(f"\n{folder / 'result.json'}, figures beside it; {fitted.wall_seconds:.0f} s of training")
    return 0


def claim(command: Command) -> None:
    """Reserves the workdir for this run, before anything is written to it."""
    with writing(command.workdir):
        train.claim(command.workdir, command.config)


def fit(command: Command, method: Method) -> train.FitResult:
    """Trains or continues a run or, for another evaluation, only reads it."""
    settings, workdir = command.settings, command.workdir
    if command.evaluates_only and method.trains:
        with as_usage_error():
            checkpoint = train.load(workdir, method.learner, method.params)
        record, step = checkpoint.record, int(checkpoint.state.step)
        if step < settings.num_meta_steps:
            print(f"the run is unfinished: {step} meta-steps so far.")
        found = record["best_step"], record["best_metrics"], record["seconds"]
        seconds_on = record.get("seconds_on", {})
        return train.FitResult(checkpoint.state, checkpoint.best, *found, None, seconds_on)
    print(f"workdir: {workdir}", flush=True)
    if not method.trains:
        state = method.learner.init(method.params)
        return train.FitResult(state, state, 0, {}, 0.0, None)
    return train.fit(
        method.learner,
        method.params,
        method.tasks,
        key=jax.random.key(settings.seed),
        num_meta_steps=settings.num_meta_steps,
        meta_batch_size=settings.meta_batch_size,
        validation=method.validation,
        workdir=workdir,
        config=command.config,
        steps_per_call=settings.steps_per_call,
        validate_every=settings.validate_every,
        checkpoint_every=settings.checkpoint_every,
        mesh=command.mesh,
        progress_metric=method.progress_metric,
    )


def stopped(command: Command, fitted: train.FitResult) -> int:
    """Prints how to continue a run that a signal stopped, and returns the exit status."""
    print(
        f"stopped by {fitted.stopped_by} after {int(fitted.state.step)} meta-steps, which are "
        f"saved: repeat the command with --workdir={command.workdir} to continue."
    )
    return 128 + signal.Signals[str(fitted.stopped_by)].value


def write(command: Command, folder: Path, fitted: train.FitResult, evaluation: Evaluation) -> None:
    """Writes `result.json` and the weights."""
    settings = command.settings
    weights = {}
    with writing(folder):
        if not command.evaluates_only:  # the weights are those of the run
            digest = train.save_weights(folder / FILE, fitted.best)
            weights = {"weights": {"file": FILE, "sha256": digest}}
        train.write_json(
            folder / "result.json",
            {
                "experiment": command.experiment,
                "algorithm": settings.algorithm,
                "preset": command.preset,
                "config": {
                    **train.read_config(command.workdir),
                    **typed.evaluation_config(settings),
                },
                "command": command.line,
                "meta_steps": int(fitted.state.step),
                "best_step": fitted.best_step,
                "validation": fitted.best_metrics,
                "wall_seconds": fitted.wall_seconds,
                "num_devices": command.launch.num_devices,
                "trained_on": _trained_on(command, fitted),
                **weights,
                **evaluation.extra,
                **train.provenance(),
                "evaluation": evaluation.rows,
            },
        )


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a failure to write into one line."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}.") from error


def _trained_on(command: Command, fitted: train.FitResult) -> dict[str, Any]:
    """The devices of the training, also after an evaluation on others."""
    here = {
        "num_devices": command.launch.num_devices,
        "device": train.provenance()["device"],
        "seconds": dict(fitted.seconds_on),
    }
    path = command.workdir / "result.json"
    if not command.evaluates_only or not path.exists():
        return here
    earlier = json.loads(path.read_text())
    return earlier.get("trained_on", {key: earlier.get(key, here[key]) for key in here})


def as_lists(scores: Mapping[str, Any]) -> dict[str, Any]:
    """One metric's `{"mean", "ci95", "num_tasks"}` as JSON data."""
    return {
        "mean": scores["mean"].tolist(),
        "ci95": scores["ci95"].tolist(),
        "num_tasks": int(scores["num_tasks"]),
    }
