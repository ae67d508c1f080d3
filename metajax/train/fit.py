"""Training: many meta-updates per compiled call, resumable to the bit."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from metajax.base import Key, MetaLearner, MetaState, Metrics, Params, check_integer
from metajax.tasks import StreamedTasks, TaskDistribution, meta_batch
from metajax.train.checkpoints import Checkpoint, Checkpoints
from metajax.train.progress import Progress
from metajax.train.signals import StopRequest
from metajax.train.stream import Stream
from metajax.train.workdir import claim
from metajax.train.writers import MetricWriter, flatten


class NonFiniteError(FloatingPointError):
    """A meta-update produced a value that is not finite."""


class Validation(NamedTuple):
    """How the best state is chosen.

    Attributes:
      tasks: meta-validation tasks, passed to `measure` as an argument so that their data are not
        compiled into the program.
      measure: `(state, tasks, rng) -> dict of scalars`; compiled by `fit`. The `rng` is the same
        every time: all states are measured on the same tasks.
      metric: the entry of that dict that decides.
      mode: whether the best is the `"max"` or the `"min"`.
    """

    tasks: TaskDistribution
    measure: Callable[[MetaState, Any, Key], Metrics]
    metric: str
    mode: str = "max"


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
    tasks: TaskDistribution,
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
) -> FitResult:
    """Trains a meta-learner.

    Sampling, adaptation and the outer update of `steps_per_call` meta-steps run in one compiled
    scan on the device. All randomness of meta-step `t` is `fold_in(key, t)`, so a run that was
    killed continues from its last checkpoint bit for bit as if it had not been. Tasks whose data
    stay on the host (`StreamedTasks`) are drawn from the same keys, and read ahead in a thread.

    Args:
      learner: from `metajax.maml` and the like, or `metajax.meta_learner`.
      params: the initialization to start from, not consumed.
      tasks: the meta-training tasks.
      key: the root of the run's randomness.
      num_meta_steps: meta-updates in all.
      meta_batch_size: tasks per meta-update.
      validation: how to choose the best state.
      workdir: where checkpoints, `metrics.jsonl` and event files go; nothing is written without.
        A directory that holds a run of the same `config` is continued.
      config: JSON data that identifies the run. Only its `num_meta_steps`, if it has one, may grow:
        the run is lengthened.
      steps_per_call: meta-updates per compiled call, and between two log lines.
      validate_every: meta-steps between validations, a multiple of `steps_per_call`; by default
        ten calls.
      checkpoint_every: likewise for checkpoints.
      mesh: the devices of the learner, if it was built with some: state and data are put on all.
      show_progress: a progress bar, or plain lines where there is no terminal.

    Returns:
      A `FitResult`. On SIGTERM or Ctrl-C it is returned early, after a checkpoint, with
      `stopped_by` set.

    Raises:
      ValueError: for step counts that do not fit together.
      WorkdirError: if `workdir` holds a run of another configuration.
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
    validate_every = validate_every or 10 * steps_per_call
    checkpoint_every = checkpoint_every or 10 * steps_per_call
    check_counts(num_meta_steps, meta_batch_size, steps_per_call, validate_every, checkpoint_every)
    if validation is not None and validation.mode not in ("max", "min"):
        raise ValueError(f'Validation.mode must be "max" or "min", got {validation.mode!r}.')

    train_key, validation_key = jax.random.split(key)

    def rngs(step):
        return jax.random.split(jax.random.fold_in(train_key, step))

    @functools.partial(jax.jit, static_argnames="length", donate_argnames="state")
    def run(state: MetaState, tasks: TaskDistribution, block: Any = None, *, length: int):
        def body(state, fetched):
            task_rng, update_rng = rngs(state.step)
            if isinstance(tasks, StreamedTasks):
                episodes = jax.vmap(tasks.episode)(fetched)
            else:
                episodes = meta_batch(tasks, meta_batch_size, task_rng)
            return learner.update(state, episodes, update_rng)

        return jax.lax.scan(body, state, block, length=length)

    # The state is donated to every call: start from copies of what the caller keeps.
    state = jax.tree.map(jnp.copy, learner.init(params))
    checkpoint = Checkpoint(state, state, {"seconds": 0.0, "best_step": 0, "best_metrics": {}})
    checkpoints = writer = None
    if workdir is not None:
        workdir = Path(workdir)
        claim(workdir, config or {})
        checkpoints = Checkpoints(workdir)
        checkpoint = checkpoints.restore(state) or checkpoint
        writer = MetricWriter(workdir, int(checkpoint.state.step))
    state, best, record = checkpoint
    best = jax.tree.map(jnp.copy, best)
    if mesh is not None:
        state, best, tasks = jax.device_put(
            (state, best, tasks), NamedSharding(mesh, PartitionSpec())
        )
        if validation is not None:
            validation = validation._replace(
                tasks=jax.device_put(validation.tasks, NamedSharding(mesh, PartitionSpec()))
            )
    step, start = int(state.step), time.monotonic() - record["seconds"]
    if validation is not None:
        measure = jax.jit(validation.measure)
    progress = Progress(num_meta_steps, step, meta_batch_size, show=show_progress)

    stream = None
    if isinstance(tasks, StreamedTasks):
        calls = _calls(step, num_meta_steps, steps_per_call)
        stream = Stream(tasks, meta_batch_size, lambda step: rngs(step)[0], calls)

    def save() -> None:
        if checkpoints is not None:
            checkpoints.save(Checkpoint(state, best, record))

    try:
        with StopRequest() as stop:
            for first, length in _calls(step, num_meta_steps, steps_per_call):
                if stop.received:
                    break
                if stream is None:
                    state, stacked = run(state, tasks, length=length)
                else:
                    state, stacked = stream.advance(run, state, length)
                stacked = jax.device_get(stacked)
                step = first + length
                _check_finite(stacked, state, first, step)
                means = flatten(jax.tree.map(lambda x: np.mean(x, axis=0), stacked), "train/")
                record = {**record, "seconds": time.monotonic() - start}
                if writer is not None:
                    writer.write(step, {"seconds": record["seconds"], **means})
                shown = {"query loss": means.get("train/query_loss", means["train/objective"])}
                if "train/return" in means:
                    shown = {"return": float(np.ravel(means["train/return"])[-1])}

                last = step == num_meta_steps
                if validation is None:
                    best, record = state, {**record, "best_step": step}
                elif last or step % validate_every == 0:
                    measured = flatten(measure(state, validation.tasks, validation_key))
                    if _better(validation, measured, record["best_metrics"]):
                        best = jax.tree.map(jnp.copy, state)
                        record = {**record, "best_step": step, "best_metrics": measured}
                    if writer is not None:
                        writer.write(step, {f"validation/{k}": v for k, v in measured.items()})
                for name, value in record["best_metrics"].items():
                    if isinstance(value, float):
                        shown[f"best {name}"] = value
                progress.update(step, shown)

                record = {**record, "seconds": time.monotonic() - start}
                if last or stop.received or step % checkpoint_every == 0:
                    save()
    finally:
        progress.close()
        if stream is not None:
            stream.close()
        if writer is not None:
            writer.close()
        if checkpoints is not None:
            checkpoints.close()
    return FitResult(
        state,
        best,
        record["best_step"],
        record["best_metrics"],
        record["seconds"],
        stop.received if step < num_meta_steps else None,
    )


def _calls(step: int, total: int, interval: int) -> Iterator[tuple[int, int]]:
    """First steps and lengths of the calls to come, which end at the multiples of `interval`.

    So a resumed run has the same boundaries.
    """
    while step < total:
        end = min(total, (step // interval + 1) * interval)
        yield step, end - step
        step = end


def _better(validation: Validation, new: dict[str, Any], old: dict[str, Any]) -> bool:
    if validation.metric not in new:
        raise ValueError(
            f"Validation.metric is {validation.metric!r}, but measure returned only "
            f"{', '.join(map(repr, new))}."
        )
    if np.shape(new[validation.metric]) != ():
        raise ValueError(
            f"Validation.metric {validation.metric!r} must be a scalar, but measure returned shape "
            f"{np.shape(new[validation.metric])}: average it, or choose one entry."
        )
    if not old:
        return True
    # Not a number is worse than any number.
    if np.isnan(old[validation.metric]):
        return not np.isnan(new[validation.metric])
    sign = 1 if validation.mode == "max" else -1
    return sign * new[validation.metric] > sign * old[validation.metric]


def _check_finite(stacked: Metrics, state: MetaState, first: int, last: int) -> None:
    """Raises `NonFiniteError` for the first meta-step of a call that went wrong.

    The metrics are from before each update, so the last update shows in the state alone.
    """
    finite = np.isfinite(stacked["objective"]) & np.isfinite(stacked["meta_gradient_norm"])
    if not finite.all():
        index = int(np.argmin(finite))
        objective, norm = stacked["objective"][index], stacked["meta_gradient_norm"][index]
        found = f"objective {objective}, norm of the meta-gradient {norm}"
        step = first + index + 1
        if np.isfinite(objective):
            remedy = (
                "A derivative is not finite where the objective is: an inner optimizer that divides"
                " by the root of squared gradients needs eps_root, as in optax.adam(lr, "
                "eps_root=1e-8), and one that has none needs first_order()"
            )
        else:
            remedy = "Lower the inner or outer learning rate or clip the meta-gradient (optax.clip)"
    elif not all(jax.tree.leaves(_all_finite((state.meta_params, state.inner_state)))):
        step, found = last, "the update is not finite, though objective and meta-gradient are"
        remedy = "Lower the outer learning rate"
    else:
        return
    raise NonFiniteError(
        f"meta-step {step}: {found}. {remedy}; JAX_DEBUG_NANS=True shows where it arises. The last "
        "good checkpoint is kept."
    )


@jax.jit
def _all_finite(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)


def check_counts(
    num_meta_steps: int,
    meta_batch_size: int,
    steps_per_call: int,
    validate_every: int,
    checkpoint_every: int,
) -> None:
    """Raises the ValueError of `fit` for counts that are not positive or do not fit together."""
    counts = {
        "num_meta_steps": num_meta_steps,
        "meta_batch_size": meta_batch_size,
        "steps_per_call": steps_per_call,
        "validate_every": validate_every,
        "checkpoint_every": checkpoint_every,
    }
    for name, count in counts.items():
        check_integer(f"fit: {name}", count)
    for name in ("validate_every", "checkpoint_every"):
        if counts[name] % steps_per_call:
            raise ValueError(
                f"fit: {name}={counts[name]} must be a multiple of "
                f"steps_per_call={steps_per_call}, the meta-steps of one compiled call."
            )
