"""SIGTERM and Ctrl-C as a request to stop at the next safe point."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class StopRequest:
    """A context in which the first SIGTERM or SIGINT only sets `received`.

    A second one acts at once. Only the main thread may handle signals; in other threads this does
    nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[signal.Signals, object] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()
