"""The files of a run: its claim on the working directory, its checkpoints and its metrics."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from metajax.train.checkpoints import Checkpoint, Checkpoints
from metajax.train.places import WorkdirError, place
from metajax.train.processes import from_first, is_first
from metajax.train.validation import Validation
from metajax.train.workdir import claim, claim_by_digests, locked
from metajax.train.writers import MetricWriter


class RunFiles(NamedTuple):
    """A run's open files.

    Attributes:
      checkpoint: where the run starts or continues.
      write: `(step, metrics)`, writes metrics.
      save: `(checkpoint)`, saves a checkpoint.
    """

    checkpoint: Checkpoint
    write: Callable[[int, Mapping[str, Any]], None]
    save: Callable[[Checkpoint], None]


@contextlib.contextmanager
def claimed(
    workdir: Path,
    config: Mapping[str, Any] | None,
    digests: Mapping[str, str] = types.MappingProxyType({}),
) -> Iterator[None]:
    """Keeps a working directory for a run, as long as the context lasts.

    Of many processes, the first one does so for all. Contexts may be nested.

    Args:
      workdir: the working directory.
      config: identifies the run.
      digests: identifies it without a configuration.

    Raises:
      ValueError: if the configuration is not JSON data.
      WorkdirError: if another process runs there, or the directory cannot be used or holds another
        run.
    """

    def keep(stack: contextlib.ExitStack) -> None:
        stack.enter_context(locked(workdir))
        if config is None:
            claim_by_digests(workdir, digests)
        else:
            claim(workdir, config)

    with contextlib.ExitStack() as stack:
        from_first(lambda: keep(stack))
        yield


@contextlib.contextmanager
def run_files(
    workdir: str | Path | None,
    config: Mapping[str, Any] | None,
    digests: Callable[[], Mapping[str, str]],
    start: Checkpoint,
    num_meta_steps: int,
    validation: Validation | None,
) -> Iterator[RunFiles]:
    """Opens the files of a run for as long as the context lasts.

    Args:
      workdir: the working directory; without one, nothing is read or written.
      config: identifies the run.
      digests: makes the digests that identify the run without a configuration.
      start: the checkpoint of a new run.
      num_meta_steps: the length of the run.
      validation: chooses the best state.

    Raises:
      ValueError: if the configuration is not JSON data.
      WorkdirError: if the directory cannot be used, or holds another run, a longer one, or one
        whose best state was chosen by another metric.
    """
    if workdir is None:
        yield RunFiles(start, lambda step, metrics: None, lambda checkpoint: None)
        return
    workdir = place(workdir)
    with contextlib.ExitStack() as stack:
        stack.enter_context(claimed(workdir, config, digests() if config is None else {}))
        checkpoints = stack.enter_context(contextlib.closing(Checkpoints(workdir, repair=True)))
        checkpoint = checkpoints.restore(start.state) or start
        _check_resumed(checkpoint, workdir, num_meta_steps, validation)
        if not is_first():
            yield RunFiles(checkpoint, lambda step, metrics: None, checkpoints.save)
            return
        writer = MetricWriter(workdir, int(checkpoint.state.step))
        stack.enter_context(contextlib.closing(writer))

        def save(checkpoint: Checkpoint) -> None:
            writer.publish()  # before: a run that continues has no other lines up to there
            checkpoints.save(checkpoint)

        yield RunFiles(checkpoint, writer.write, save)


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
            f"{validation.metric!r}, one of {', '.join(map(repr, metrics))}: choose by that "
            "metric, or use another workdir."
        )
