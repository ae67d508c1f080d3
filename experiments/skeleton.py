"""One run of any experiment: build, fit, evaluate, print, write, draw."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

import metajax
from experiments import settings as typed
from experiments import tables
from experiments.command import Command, as_usage_error
from experiments.settings import UsageError
from metajax import train
from metajax.train.places import copy, is_local
from metajax.train.weights import FILE
from metajax.train.workdir import unclaim

RESULT = "result.json"


class Stopped(Exception):
    """A signal, by its name, asked the run to stop while something was trained besides."""


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
    if command.evaluates_only:
        return _run(command, build)
    with train.claimed(command.workdir, command.config):
        try:
            return _run(command, build)
        except UsageError:
            if train.is_first():
                unclaim(command.workdir)
            raise


def _run(command: Command, build: Callable[[Command], Method]) -> int:
    _check_unfinished(command)
    with as_usage_error():
        method = build(command)
        jax.eval_shape(method.learner.init, method.params)
    fitted = fit(command, method)
    if fitted.stopped_by:
        return stopped(command, fitted)
    print("evaluating", flush=True)
    try:
        evaluation = method.evaluate(fitted)
    except Stopped as request:
        return stopped(command, fitted._replace(stopped_by=str(request)))
    print(evaluation.table)
    folder = command.workdir
    if command.evaluates_only:
        values = typed.evaluation_config(command.settings).values()
        folder /= "evaluations/" + "-".join(map(str, values))
    if train.is_first():
        write(command, folder, fitted, evaluation)
        print("drawing the figures", flush=True)
        with complete(folder) as figures:
            method.draw(figures, fitted, evaluation)
        if not command.evaluates_only:
            summarize(command, folder, fitted, evaluation)
    print(f"\n{folder / RESULT}, figures beside it; {fitted.wall_seconds:.0f} s of training")
    return 0


def _check_unfinished(command: Command) -> None:
    """Raises `UsageError` for a finished run, if only its evaluation would be another one."""
    path = command.workdir / RESULT
    if command.evaluates_only or not path.exists():
        return
    result, settings = train.read_json(path), command.settings
    earlier = result.get("config", {})
    if result.get("meta_steps") == settings.num_meta_steps:
        for name, value in typed.evaluation_config(settings).items():
            if earlier.get(name, value) != value:
                raise UsageError(
                    f"--{name}={value}: the run in {command.workdir} is finished, and its result "
                    f"has {name}={earlier[name]}. --mode=eval evaluates it again beside that."
                )


@contextlib.contextmanager
def complete(folder: Path) -> Iterator[Path]:
    """A folder whose files are moved to another one when all of them are written."""
    if not is_local(folder):
        with tempfile.TemporaryDirectory() as files:
            yield Path(files)
            with train.accessing(folder):
                for path in in_order(Path(files)):
                    copy(path, folder / path.name)
        return
    partial = folder / "partial"
    with train.accessing(folder):
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        partial.mkdir(parents=True)
        try:
            yield partial
            for path in in_order(partial):
                os.replace(path, folder / path.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def in_order(folder: Path) -> list[Path]:
    """The files of a folder, the result last: where it is, the others are."""
    return sorted(folder.iterdir(), key=lambda path: path.name == RESULT)


def fit(command: Command, method: Method) -> train.FitResult:
    """Trains or continues a run or, for another evaluation, only reads it."""
    settings, workdir = command.settings, command.workdir
    trains = method.trains and settings.num_meta_steps > 0
    if command.evaluates_only and trains:
        with as_usage_error():
            train.read_metrics(workdir)  # the figures need it
            checkpoint = train.load(workdir, method.learner, method.params)
        record, step = checkpoint.record, int(checkpoint.state.step)
        if step < settings.num_meta_steps:
            print(f"the run is unfinished: {step} meta-steps so far.")
        found = record["best_step"], record["best_metrics"], record["seconds"]
        seconds_on = record.get("seconds_on", {})
        return train.FitResult(checkpoint.state, checkpoint.best, *found, None, seconds_on)
    params = starting_params(command, method)
    print(f"workdir: {workdir}", flush=True)
    if command.launch.num_devices > 1:
        print(f"{command.launch.num_devices} devices share the tasks", flush=True)
    if not trains:
        state = method.learner.init(params)
        return train.FitResult(state, state, 0, {}, 0.0, None)
    fitted = train.fit(
        method.learner,
        params,
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
        profile=command.profile,
    )
    if jax.process_count() == 1:
        return fitted
    # Each process judges what was trained, where it does not share the tasks with the others.
    return fitted._replace(state=train.local(fitted.state), best=train.local(fitted.best))


def starting_params(command: Command, method: Method) -> Any:
    """The parameters where training starts: those of `--weights`, or the method's own."""
    settings = command.settings
    if settings.weights is None:
        return method.params
    with as_usage_error():
        params = train.load_params(settings.weights, method.params)
    learned = jax.eval_shape(method.learner.init, params).meta_params.inner
    if not settings.num_meta_steps and jax.tree.leaves(learned):
        raise UsageError(
            f"--num_meta_steps=0: {settings.algorithm} learns more than the parameters, which "
            "alone are taken from --weights. --mode=eval evaluates a run of its own again."
        )
    return params


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
    with complete(folder) as partial:
        if not command.evaluates_only:  # the weights are those of the run
            digest = train.save_weights(partial / FILE, fitted.best)
            weights = {"weights": {"file": FILE, "sha256": digest}}
            if settings.weights is not None:
                with as_usage_error():
                    digest = train.weights_digest(settings.weights)
                weights["started_from"] = {"weights": settings.weights, "sha256": digest}
        train.write_json(
            partial / RESULT,
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


def summarize(
    command: Command, folder: Path, fitted: train.FitResult, evaluation: Evaluation
) -> None:
    """Adds settings, results and figures to what TensorBoard shows."""
    results = {
        f"result/{name.replace(' ', '_')}/{step}_steps": float(
            row["mean"][row["steps"].index(step)]
        )
        for name, row in tables.evaluations(evaluation.rows).items()
        for step in tables.shown_steps(row["steps"])
    }
    figures = sorted(path for path in folder.iterdir() if path.suffix in (".png", ".gif"))
    train.summarize(folder, int(fitted.state.step), command.config, results, figures)


def training_metrics(command: Command) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`: none of a run that only evaluates `--weights`."""
    return train.read_metrics(command.workdir) if command.settings.num_meta_steps else []


def finished(workdir: Path, wanted: Mapping[str, Any]) -> Any:
    """The evaluation of a finished run with these settings, or `None`."""
    path = workdir / RESULT
    if not path.exists():
        return None
    result = train.read_json(path)
    if not isinstance(result.get("config"), dict) or "evaluation" not in result:
        raise UsageError(f"{path} is not what a launcher writes: remove it.")
    same = all(result["config"].get(key) == value for key, value in wanted.items())
    return result["evaluation"] if same else None


def _trained_on(command: Command, fitted: train.FitResult) -> dict[str, Any]:
    """The devices of the training, also after an evaluation on others."""
    here = {
        "num_devices": command.launch.num_devices,
        "device": train.provenance()["device"],
        "seconds": dict(fitted.seconds_on),
    }
    path = command.workdir / RESULT
    if not command.evaluates_only or not path.exists():
        return here
    earlier = train.read_json(path)
    return earlier.get("trained_on", {key: earlier.get(key, here[key]) for key in here})


def as_lists(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The result of `metajax.evaluate` for one metric, as JSON data."""
    return {
        "mean": scores["mean"].tolist(),
        "ci95": scores["ci95"].tolist(),
        "quantiles": {str(q): values.tolist() for q, values in scores["quantiles"].items()},
        **({"increased": scores["increased"].tolist()} if "increased" in scores else {}),
        "num_tasks": int(scores["num_tasks"]),
    }
