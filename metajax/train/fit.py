"""Training: many meta-updates per compiled call, resumable to the bit."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from metajax.base import Episode, Key, MetaLearner, MetaState, Params, split_key
from metajax.tasks import TaskDistribution
from metajax.train.arguments import (
    check_counted,
    check_counts,
    check_learner,
    check_mesh,
    check_tasks,
    check_updated,
    initial_state,
)
from metajax.train.checkpoints import Checkpoint
from metajax.train.files import run_files
from metajax.train.finite import check_finite
from metajax.train.identity import digest
from metajax.train.processes import is_first, on_mesh, replicated, shardings
from metajax.train.profiles import Profile, check_profile
from metajax.train.progress import Clock, Progress, highlights
from metajax.train.signals import StopRequest
from metajax.train.task_sources import Stream, advance, make_source
from metajax.train.validation import Validation, better, check_validation, make_validator
from metajax.train.writers import means


class FitResult(NamedTuple):
    """What `fit` returns.

    Attributes:
      state: the last state.
      best: the state with the best validation metric; without validation, the last state.
      best_step: the number of meta-updates behind `best`.
      best_metrics: the validation metrics of `best`.
      wall_seconds: seconds of the whole run, including the parts before it was resumed.
      stopped_by: the signal that asked the run to stop, or `None`. A run that had just made its
        last meta-step is complete all the same.
      seconds_on: `wall_seconds` by the kind of device, such as `{"NVIDIA H200": 83.5}`.
    """

    state: MetaState
    best: MetaState
    best_step: int
    best_metrics: dict[str, Any]
    wall_seconds: float
    stopped_by: str | None
    seconds_on: Mapping[str, float] = {}


def fit(
    learner: MetaLearner,
    params: Params,
    tasks: TaskDistribution | Stream | Callable[[Key], Episode],
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
    profile: tuple[int, int] | None = None,
) -> FitResult:
    """Trains a meta-learner.

    Sampling, adaptation and the outer update of `steps_per_call` meta-steps run in one compiled
    scan on the device. All randomness of meta-step `t` comes from `fold_in(key, t)`, so a run that
    is killed and resumed gives the same numbers, bit for bit, as one that was not. Tasks whose data
    stay on the host (`StreamedTasks`) are drawn from the same keys, and read ahead in a background
    thread.

    Args:
      learner: from `metajax.maml` and the like, `metajax.meta_learner`, or a `MetaLearner` of your
        own. Its metrics are averaged over the meta-steps of a call and logged. If it reports the
        metrics `objective` and `meta_gradient_norm`, they must be finite, and an error names the
        meta-step where they are not. Otherwise only the state is checked, after every call.
      params: the initialization to start from, not consumed.
      tasks: the meta-training tasks, a `TaskDistribution`, a function `rng -> Episode`, or a
        `Stream` of an iterator's meta-batches, which has a resume of its own.
      key: the root of the run's randomness, one key.
      num_meta_steps: the total number of meta-updates.
      meta_batch_size: tasks per meta-update.
      validation: how to choose the best state.
      workdir: the directory for checkpoints, `metrics.jsonl` and event files, a local one or one in
        `gs://`; without one, nothing is written. If it holds the same run, that run is continued,
        or returned if it is finished. A run may be lengthened, but not shortened; the
        validation at its earlier end stays a candidate for `best`.
      config: a dict of JSON data that identifies the run; of its entries only `num_meta_steps` may
        grow. By default the run is identified by digests of its compiled meta-step, its initial
        arrays, the key, the arrays of the tasks, and the validation. Another version of JAX, other
        devices or another mesh may compile another meta-step, and so make it another run.
      steps_per_call: meta-updates per compiled call, and between two log lines.
      validate_every: meta-steps between validations, a multiple of `steps_per_call`; by default
        ten calls.
      checkpoint_every: meta-steps between checkpoints, likewise.
      mesh: the devices of the learner, if it was built with a mesh. All of them get the state and
        the data, but for arrays of `params` that are sharded over the mesh, which stay so. A run of
        many processes, after `jax.distributed.initialize()`, needs one over all of their devices:
        every process calls `fit` with the same arguments, and the first one writes.
      show_progress: shows a progress bar, or plain lines if there is no terminal.
      progress_metric: the training metric to show, such as `"query/accuracy"`; by default
        `query_loss` or else `objective`.
      profile: two meta-steps `(first, last)`, from which and up to which the compiled calls are
        traced. The folder `profile` of `workdir` then has a trace for TensorBoard or XProf.

    Returns:
      A `FitResult`. On SIGTERM or Ctrl-C it is returned early, after a checkpoint, with
      `stopped_by` set; many processes stop after the same meta-step.

    Raises:
      ValueError: if an argument is of the wrong kind, the step counts do not fit together, or
        `measure` does not return `Validation.metric` as a scalar.
      WorkdirError: if `workdir` holds another run or more meta-steps than `num_meta_steps`, or
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
    check_profile(profile, workdir)
    tasks, validation = check_tasks(tasks), check_validation(validation)
    train_key, validation_key = split_key(key, what="fit: key")
    on_devices = functools.partial(on_mesh, mesh)

    def rngs(step):
        return jax.random.split(jax.random.fold_in(train_key, step))

    initial = on_devices(initial_state(learner, params))
    source = make_source(tasks, meta_batch_size, lambda step: rngs(step)[0], mesh)
    validator = make_validator(validation, initial, validation_key, mesh)

    # Its text identifies the run, whatever the length of a call. Inlined, it compiles nothing more.
    @functools.partial(jax.jit, inline=True)
    def meta_step(state: MetaState, tasks: Any, fetched: Any, keys: Key):
        task_rng, update_rng = keys
        episodes = source.episodes(tasks, fetched, task_rng)
        return check_updated(learner.update(state, episodes, update_rng))

    # What the processes of a mesh fetch is on all of their devices.
    outputs = None if mesh is None else (shardings(mesh, initial), replicated(mesh))

    @functools.partial(
        jax.jit, static_argnames="length", donate_argnames="state", out_shardings=outputs
    )
    def run(state: MetaState, tasks: Any, block: Any, *, length: int):
        def body(state, fetched):
            return meta_step(state, tasks, fetched, rngs(state.step))

        return jax.lax.scan(body, state, block, length=length)

    def digests() -> dict[str, str]:
        fetched = source.first()
        lowered = meta_step.lower(initial, source.tasks, fetched, rngs(0))
        found = {
            "program": digest(lowered.as_text()),
            "initial state": digest(initial),
            "key": digest(key),
            "tasks": digest(source.tasks, fetched),
        }
        return found if validator is None else {**found, "validation": validator.digest(initial)}

    fresh = Checkpoint(
        initial,
        initial,
        {"seconds": 0.0, "seconds_on": {}, "best_step": 0, "best_metrics": {}},
    )
    with contextlib.ExitStack() as stack:
        files = stack.enter_context(
            run_files(workdir, config, digests, fresh, num_meta_steps, validation)
        )
        state, best, record = files.checkpoint
        state, best = on_devices((state, jax.tree.map(jnp.copy, best)))
        step, clock = int(state.step), Clock(record)
        calls = list(_calls(step, num_meta_steps, steps_per_call))
        blocks = stack.enter_context(contextlib.closing(source.blocks(calls)))
        shown = show_progress and is_first()
        progress = Progress(num_meta_steps, step, meta_batch_size, show=shown)
        stack.enter_context(contextlib.closing(progress))
        traced = stack.enter_context(contextlib.closing(Profile(profile, workdir)))
        stop, stopped_by = stack.enter_context(StopRequest()), None
        for first, length in calls:
            traced.at(first)
            state, metrics = advance(run, state, source.tasks, blocks, length)
            step = first + length
            last = step == num_meta_steps
            check_counted(state, step)
            check_finite(learner, metrics, state, first, step)
            traced.at(step)
            averages = {f"train/{name}": x for name, x in means(metrics).items()}
            record = clock.stamp(record)
            files.write(step, {"seconds": record["seconds"], **averages})

            if validator is None:
                best, record = state, {**record, "best_step": step, "best_metrics": {}}
            elif last or step % validate_every == 0:
                measured = validator.metrics(state)
                if better(validator.validation, measured, record["best_metrics"]):
                    best = jax.tree.map(jnp.copy, state)
                    record = {**record, "best_step": step, "best_metrics": measured}
                files.write(step, {f"validation/{name}": x for name, x in measured.items()})
            progress.update(step, highlights(averages, record["best_metrics"], progress_metric))

            record = clock.stamp(record)
            stopped_by = stop.agreed()  # asked once: a signal may come any time
            if last or stopped_by or step % checkpoint_every == 0:
                files.save(Checkpoint(state, best, record))
            if stopped_by:
                break
    found = record["best_step"], record["best_metrics"], record["seconds"]
    return FitResult(state, best, *found, stopped_by, record.get("seconds_on", {}))


def _calls(step: int, total: int, interval: int) -> Iterator[tuple[int, int]]:
    """Yields the first step and the length of every remaining call.

    Calls end at multiples of `interval`, also in a resumed run.
    """
    while step < total:
        end = min(total, (step // interval + 1) * interval)
        yield step, end - step
        step = end
