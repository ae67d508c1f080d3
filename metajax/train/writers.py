"""Metrics on disk: one JSON object per line, and TensorBoard event files."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from metajax.base import PyTree
from metajax.train.places import WorkdirError, accessing, copy, files, is_local, place


def leaf_name(path: tuple[Any, ...]) -> str:
    """The name of a leaf on disk, such as `"query/accuracy"`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree, by name."""
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def flatten(metrics: Mapping[str, Any]) -> dict[str, float | list]:
    """Flattens nested metrics into `{"query/accuracy": 0.9, "support_loss": [1.2, 0.8]}`."""
    return {name: np.asarray(leaf, np.float64).tolist() for name, leaf in named(metrics).items()}


def means(metrics: Mapping[str, Any]) -> dict[str, float | list]:
    """Averages metrics `[meta-steps, ...]` over the meta-steps, and flattens them."""
    return flatten(jax.tree.map(_mean, metrics))


def _mean(x: np.ndarray) -> np.ndarray:
    # NumPy would add up bfloat16 in bfloat16.
    narrow = jnp.issubdtype(x.dtype, jnp.floating) and not np.issubdtype(x.dtype, np.floating)
    return np.mean(x.astype(np.float32) if narrow else x, axis=0)


class MetricWriter:
    """Writes `metrics.jsonl` and event files below a working directory.

    A resumed run continues both from its checkpoint: later entries of the interrupted run are
    dropped. In a store, nothing can be appended to a file: there, the files are written whole when
    they are published.
    """

    def __init__(self, workdir: Path, resumed_step: int):
        self._path, self._workdir = workdir / "metrics.jsonl", workdir
        with accessing(self._path), contextlib.ExitStack() as stack:
            self._local = workdir
            if not is_local(workdir):
                self._local = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self._keep_until(resumed_step)
            self._file = stack.enter_context((self._local / self._path.name).open("a"))
            self._events = Events(self._local / "events", resumed_step)
            stack.enter_context(contextlib.closing(self._events))
            self._opened = stack.pop_all()

    def _keep_until(self, step: int) -> None:
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_bytes().decode(errors="replace").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, LookupError, TypeError):
                continue  # the half-written last line of a killed run
        path = self._local / self._path.name
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        os.replace(temporary, path)

    def write(self, step: int, metrics: Mapping[str, float | list]) -> None:
        with accessing(self._path):
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._file.flush()
            self._events.write(step, metrics)

    def publish(self) -> None:
        """Makes what is written so far be seen, and outlast the process."""
        if self._local == self._workdir:  # it is already
            return
        with accessing(self._path):
            for path in files(self._local):
                copy(path, self._workdir / path.relative_to(self._local))

    def close(self) -> None:
        with accessing(self._path), self._opened:
            self.publish()


class Events:
    """An event file of TensorBoard.

    Written at once, not by a thread of tensorboardX, so that a full disk is found out here.
    """

    def __init__(self, folder: Path, resumed_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._file = RecordWriter(str(folder / name))
        self._header: list[dict[str, Any]] = [{"file_version": "brain.Event:2"}]
        if resumed_step:
            # Readers drop what earlier files have from this step on.
            start = SessionLog(status=SessionLog.START)
            self._header.append({"step": resumed_step + 1, "session_log": start})

    def write(self, step: int, metrics: Mapping[str, float | list]) -> None:
        values = [
            Summary.Value(tag=f"{name}/{i}" if np.ndim(value) else name, simple_value=entry)
            for name, value in metrics.items()
            for i, entry in enumerate(np.atleast_1d(value).reshape(-1))
        ]
        self.add(step, Summary(value=values))

    def add(self, step: int, summary: Any) -> None:
        for event in (*self._header, {"step": step, "summary": summary}):
            self._file.write(Event(wall_time=time.time(), **event).SerializeToString())
        self._header = []
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(workdir: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, in order.

    Raises:
      WorkdirError: if it does not exist, or a line is damaged.
    """
    path = place(workdir) / "metrics.jsonl"
    if not path.exists():
        raise WorkdirError(f"{path} does not exist: train a run there first.")
    found = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        try:
            found.append(json.loads(line))
        except ValueError:
            raise WorkdirError(f"line {number} of {path} is damaged: remove it.") from None
    return found
