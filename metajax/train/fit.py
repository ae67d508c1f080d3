"""Training: many meta-updates per compiled call, resumable to the bit."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from metajax.base import Episode, Key, MetaLearner, MetaState, Params, split_key
from metajax.tasks import StreamedTasks, TaskDistribution, meta_batch
from metajax.train.arguments import (
    check_counts,
    check_learner,
    check_mesh,
    check_tasks,
    check_updated,
    initial_state,
)
from metajax.train.checkpoints import Checkpoint, Checkpoints
from metajax.train.finite import check_finite
from metajax.train.identity import digest
from metajax.train.progress import Progress, highlights
from metajax.train.signals import StopRequest
from metajax.train.stream import Stream, draws
from metajax.train.validation import Validation, better, check_measured, check_validation
from metajax.train.workdir import WorkdirError, claim, claim_by_digests
from metajax.train.writers import MetricWriter, flatten


class FitResult(NamedTuple):
    """What `fit` returns.

    Attributes:
      state: the last state.
      best: the state that was best on the meta-validation tasks; the last without validation.
      best_step: the meta-updates behind `best`.
      best_metrics: its validation metrics.
      wall_seconds: seconds spent in this run, earlier parts of a resumed one included.
      stopped_by: the signal that ended the run before its time, or `None`.
    """

    state: MetaState
    best: MetaState
    best_step: int
    best_metrics: dict[str, Any]
    wall_seconds: float
    stopped_by: str | None


def fit(
    learner: MetaLearner,
    params: Params,
    tasks: TaskDistribution | Callable[[Key], Episode],
    *,
    key: Key,
    num_meta_steps: int,
    meta_batch_size: int,
    validation: Validation | None = None,
    workdir: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    steps_per_call: int = 100,
    validate_every: int | None = None,
    checkpoint_every: int | None = None,
    mesh: Mesh | None = None,
    show_progress: bool = True,
    progress_metric: str | None = None,
) -> FitResult:
    """Trains a meta-learner.

    Sampling, adaptation and the outer update of `steps_per_call` meta-steps run in one compiled
    scan on the device. All randomness of meta-step `t` is `fold_in(key, t)`, so a run that was
    killed continues from its last checkpoint bit for bit as if it had not been. Tasks whose data
    stay on the host (`StreamedTasks`) are drawn from the same keys, and read ahead in a thread.

    Args:
      learner: from `metajax.maml` and the like, `metajax.meta_learner`, or a `MetaLearner` of your
        own. Its metrics are averaged over the meta-steps of a call, logged and otherwise up to it:
        where it reports scalars `objective` and `meta_gradient_norm`, they must be finite and name
        the meta-step at which they are not; without, the state alone is judged after every call.
      params: the initialization to start from, not consumed.
      tasks: the meta-training tasks, a `TaskDistribution` or a function `rng -> Episode`.
      key: the root of the run's randomness, one key.
      num_meta_steps: meta-updates in all.
      meta_batch_size: tasks per meta-update.
      validation: how to choose the best state.
      workdir: where checkpoints, `metrics.jsonl` and event files go; nothing is written without.
        A directory that holds the same run is continued, or returned where it is finished. It may
        be lengthened, and not shortened.
      config: a dict of JSON data that identifies the run; of it only `num_meta_steps`, if it has
        one, may grow. By default digests identify the run: of its compiled meta-step, the arrays
        it starts from, the key, the tasks' arrays and the validation. A meta-step compiled by
        another version of JAX, for other devices or another mesh is another one.
      steps_per_call: meta-updates per compiled call, and between two log lines.
      validate_every: meta-steps between validations, a multiple of `steps_per_call`; by default
        ten calls.
      checkpoint_every: likewise for checkpoints.
      mesh: the devices of the learner, if it was built with some: state and data are put on all.
      show_progress: a progress bar, or plain lines where there is no terminal.
      progress_metric: the metric of the learner that it shows, such as `"query/accuracy"`; by
        default `query_loss` or, where there is none, `objective`.

    Returns:
      A `FitResult`. On SIGTERM or Ctrl-C it is returned early, after a checkpoint, with
      `stopped_by` set.

    Raises:
      ValueError: for arguments of the wrong kind, step counts that do not fit together, or a
        `Validation.metric` that `measure` does not return as a scalar.
      WorkdirError: if `workdir` holds another run, or more meta-steps than `num_meta_steps`, or
        cannot be made a directory.
      NonFiniteError: at the first meta-step whose objective, meta-gradient or update is not finite.
        The last checkpoint before it is kept.

    Example:

    >>> import jax, jax.numpy as jnp, optax, metajax
    >>> from metajax import nn, train
    >>> model = nn.sinusoid_mlp()
    >>> def loss(params, batch, rng):
    ...     x, y = batch
    ...     return jnp.mean((model.apply(params, x) - y) ** 2), {}
    >>> learner = metajax.maml(loss, optax.sgd(0.01), optax.adam(1e-3))
    >>> result = train.fit(
    ...     learner, model.init(jax.random.key(0), jnp.zeros((1, 1))),
    ...     metajax.tasks.Sinusoid(), key=jax.random.key(1), num_meta_steps=4,
    ...     meta_batch_size=2, steps_per_call=2, show_progress=False)
    >>> int(result.state.step)
    4
    """
    num_meta_steps, meta_batch_size, steps_per_call, validate_every, checkpoint_every = (
        check_counts(
            num_meta_steps, meta_batch_size, steps_per_call, validate_every, checkpoint_every
        )
    )
    check_learner(learner)
    check_mesh(mesh)
    tasks = check_tasks(tasks)
    if validation is not None:
        validation = check_validation(validation)
    train_key, validation_key = split_key(key, what="fit: key")

    def rngs(step):
        return jax.random.split(jax.random.fold_in(train_key, step))

    # Traced by itself, so that the program of a run can be told without its length; inlined, so
    # that it is compiled as if it were not.
    @functools.partial(jax.jit, inline=True)
    def meta_step(state: MetaState, tasks: TaskDistribution, fetched: Any, keys: Key):
        task_rng, update_rng = keys
        if isinstance(tasks, StreamedTasks):
            episodes = jax.vmap(tasks.episode)(fetched)
        else:
            episodes = meta_batch(tasks, meta_batch_size, task_rng)
        return check_updated(learner.update(state, episodes, update_rng))

    @functools.partial(jax.jit, static_argnames="length", donate_argnames="state")
    def run(state: MetaState, tasks: TaskDistribution, block: Any = None, *, length: int):
        def body(state, fetched):
            return meta_step(state, tasks, fetched, rngs(state.step))

        return jax.lax.scan(body, state, block, length=length)

    on_devices = functools.partial(_replicated, mesh)
    state, tasks = initial_state(learner, params), on_devices(tasks)
    if validation is not None:
        validation = validation._replace(tasks=on_devices(validation.tasks))
        measure = jax.jit(validation.measure)
        measured_on = validation.tasks, validation_key
        check_measured(validation, jax.eval_shape(measure, state, *measured_on))

    def digests() -> dict[str, str]:
        fetched = None
        if isinstance(tasks, StreamedTasks):
            first = jax.jit(lambda: draws(tasks, meta_batch_size, rngs(0)[0]))()
            fetched = tasks.fetch(jax.device_get(first))
        program = meta_step.lower(on_devices(state), tasks, fetched, rngs(0)).as_text()
        found = {
            "program": digest(program),
            "initial state": digest(state),
            "key": digest(key),
            "tasks": digest(tasks, fetched),
        }
        if validation is not None:
            program = measure.lower(on_devices(state), *measured_on).as_text()
            choice = f"{validation.mode} {validation.metric}"
            found["validation"] = digest(program, validation.tasks, choice)
        return found

    checkpoint = Checkpoint(state, state, {"seconds": 0.0, "best_step": 0, "best_metrics": {}})
    checkpoints = writer = stream = stopped_by = None
    with contextlib.ExitStack() as stack:
        if workdir is not None:
            workdir = Path(workdir)
            if config is None:
                claim_by_digests(workdir, digests())
            else:
                claim(workdir, config)
            checkpoints = stack.enter_context(contextlib.closing(Checkpoints(workdir)))
            checkpoint = checkpoints.restore(state) or checkpoint
            _check_resumed(checkpoint, workdir, num_meta_steps, validation)
            writer = MetricWriter(workdir, int(checkpoint.state.step))
            stack.callback(writer.close)
        state, best, record = checkpoint
        state, best = on_devices((state, jax.tree.map(jnp.copy, best)))
        step, start = int(state.step), time.monotonic() - record["seconds"]
        calls = list(_calls(step, num_meta_steps, steps_per_call))
        if isinstance(tasks, StreamedTasks):
            stream = Stream(tasks, meta_batch_size, lambda step: rngs(step)[0], calls)
            stack.callback(stream.close)
        progress = Progress(num_meta_steps, step, meta_batch_size, show=show_progress)
        stack.callback(progress.close)

        stop = stack.enter_context(StopRequest())
        for first, length in calls:
            if stream is None:
                state, stacked = run(state, tasks, length=length)
            else:
                state, stacked = stream.advance(run, state, length)
            stacked = jax.device_get(stacked)
            step = first + length
            if int(state.step) != step:
                raise ValueError(
                    f"fit: learner.update must count the meta-updates in state.step, which is "
                    f"{state.step} after {step}."
                )
            check_finite(learner, stacked, state, first, step)
            means = flatten(jax.tree.map(_mean, stacked), "train/")
            record = {**record, "seconds": time.monotonic() - start}
            if writer is not None:
                writer.write(step, {"seconds": record["seconds"], **means})

            last = step == num_meta_steps
            if validation is None:
                best, record = state, {**record, "best_step": step, "best_metrics": {}}
            elif last or step % validate_every == 0:
                measured = flatten(measure(state, *measured_on))
                if better(validation, measured, record["best_metrics"]):
                    best = jax.tree.map(jnp.copy, state)
                    record = {**record, "best_step": step, "best_metrics": measured}
                if writer is not None:
                    writer.write(step, {f"validation/{k}": v for k, v in measured.items()})
            progress.update(step, highlights(means, record["best_metrics"], progress_metric))

            record = {**record, "seconds": time.monotonic() - start}
            stopped_by = stop.received  # once: a signal may come between two looks
            if checkpoints is not None and (last or stopped_by or step % checkpoint_every == 0):
                checkpoints.save(Checkpoint(state, best, record))
            if stopped_by:
                break
    return FitResult(
        state,
        best,
        record["best_step"],
        record["best_metrics"],
        record["seconds"],
        stopped_by if step < num_meta_steps else None,
    )


def _mean(x: np.ndarray) -> np.ndarray:
    """Over the meta-steps of a call; NumPy would add up bfloat16 in bfloat16."""
    narrow = jnp.issubdtype(x.dtype, jnp.floating) and not np.issubdtype(x.dtype, np.floating)
    return np.mean(x.astype(np.float32) if narrow else x, axis=0)


def _replicated(mesh: Mesh | None, tree: Any) -> Any:
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def _check_resumed(
    checkpoint: Checkpoint, workdir: Path, num_meta_steps: int, validation: Validation | None
) -> None:
    step, metrics = int(checkpoint.state.step), checkpoint.record["best_metrics"]
    if step > num_meta_steps:
        raise WorkdirError(
            f"{workdir} holds a run of {step} meta-steps, more than num_meta_steps="
            f"{num_meta_steps}: ask for at least {step}, or choose another workdir."
        )
    if validation is not None and metrics and validation.metric not in metrics:
        raise WorkdirError(
            f"{workdir} holds a run whose best state was chosen by another metric than "
            f"{validation.metric!r}, one of {', '.join(map(repr, metrics))}: choose by that, or "
            "choose another workdir."
        )


def _calls(step: int, total: int, interval: int) -> Iterator[tuple[int, int]]:
    """First steps and lengths of the calls to come, which end at the multiples of `interval`.

    So a resumed run has the same boundaries.
    """
    while step < total:
        end = min(total, (step // interval + 1) * interval)
        yield step, end - step
        step = end
