"""SIGTERM and Ctrl-C as a request to stop at the next safe point."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

# JAX lets the processes agree on the next of consecutive numbers.
_questions = itertools.count()


class StopRequest:
    """A context in which the first SIGTERM or SIGINT only sets `received`.

    A second one acts at once. Only the main thread may handle signals; in other threads this does
    nothing. Of many processes, JAX handles SIGTERM, and has all of them stop at the same step;
    Ctrl-C in one of them is SIGTERM to it.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[signal.Signals, object] = {}

    def agreed(self) -> str | None:
        """The signal that asks all processes to stop now, if any.

        Of many processes, all ask at the same points of the run.
        """
        if jax.process_count() == 1:
            return self.received
        stop = multihost_utils.reached_preemption_sync_point(next(_questions))
        return signal.Signals.SIGTERM.name if stop else None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._restore()
        if jax.process_count() == 1:
            self.received = signal.Signals(number).name
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            alone = jax.process_count() == 1
            for number in (signal.SIGTERM, signal.SIGINT) if alone else (signal.SIGINT,):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()
