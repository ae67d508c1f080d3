"""A trace of some meta-steps, for TensorBoard's profiler or XProf."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax

from metajax.train.places import accessing, copy, files, is_local, place
from metajax.train.processes import is_first

FOLDER = "profile"


def check_profile(profile: Sequence[int] | None, workdir: object) -> None:
    """Raises `ValueError` unless `profile` is two meta-steps, the first before the last."""
    if profile is None:
        return
    steps = tuple(profile) if isinstance(profile, tuple | list) else ()
    if len(steps) != 2 or not all(type(x) is int for x in steps) or not 0 <= steps[0] < steps[1]:
        raise ValueError(
            f"fit: profile={profile!r} must be two meta-steps such as (100, 120), the first before "
            "the last."
        )
    if workdir is None:
        raise ValueError("fit: profile needs workdir, where the trace is written.")


class Profile:
    """Traces the compiled calls from one meta-step to another, in the first process."""

    def __init__(self, profile: Sequence[int] | None, workdir: object):
        self._steps = tuple(profile) if profile and is_first() else None
        self._workdir = workdir
        self._tracing: Path | None = None

    def at(self, step: int) -> None:
        """To be called before the meta-step is computed, and after the last one."""
        if self._steps and self._tracing is None and self._steps[0] <= step < self._steps[1]:
            folder = place(self._workdir) / FOLDER  # type: ignore[arg-type]
            self._tracing = folder if is_local(folder) else Path(tempfile.mkdtemp())
            with accessing(folder):
                jax.profiler.start_trace(self._tracing)
        elif self._tracing is not None and self._steps and step >= self._steps[1]:
            self.close()

    def close(self) -> None:
        """Writes what is traced so far."""
        if self._tracing is None:
            return
        folder, local, self._steps = place(self._workdir) / FOLDER, self._tracing, None  # type: ignore[arg-type]
        self._tracing = None
        with accessing(folder):
            jax.profiler.stop_trace()
            if folder != local:
                for path in files(local):
                    copy(path, folder / path.relative_to(local))
