"""Where a run's files are: a local folder, or one of a store such as `gs://bucket/run`."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from etils import epath

# What reads and writes each kind of store that orbax knows as well.
PACKAGES = {"gs": "gcsfs"}


class WorkdirError(ValueError):
    """The working directory cannot be used for this run."""


def place(name: str | os.PathLike[str]) -> Path:
    """The folder of a name, with the methods of `pathlib.Path` wherever it is.

    Args:
      name: a local path, or `gs://BUCKET/PATH` for Google Cloud Storage.

    Raises:
      WorkdirError: for what is no path or in another kind of store, or if its package is missing.

    Example:

    >>> from metajax import train
    >>> train.place("runs/sinusoid").name
    'sinusoid'
    """
    if not isinstance(name, str | os.PathLike):
        raise WorkdirError(f"a workdir must be a string or a path, got {name!r}.")
    scheme, separator, _ = os.fspath(name).partition("://")
    if not separator:
        return Path(name).expanduser()
    if scheme not in PACKAGES:
        raise WorkdirError(
            f"{name}: the checkpoints of a run can be in a local folder or in gs://, not in "
            f"{scheme}://. Mount that store as a folder, and name the folder."
        )
    try:
        importlib.import_module(PACKAGES[scheme])
    except ImportError:
        raise WorkdirError(
            f"{name} needs a package that is missing: pip install {PACKAGES[scheme]}."
        ) from None
    return epath.Path(name)  # type: ignore[return-value]


def is_local(path: Path) -> bool:
    """Whether a path is of the file system, where files can be locked, appended to and renamed."""
    return isinstance(path, Path)


@contextlib.contextmanager
def accessing(path: Path) -> Iterator[None]:
    """Says in one line, as a `WorkdirError`, what the file system or the store refuses."""
    try:
        yield
    except WorkdirError:
        raise
    except Exception as error:
        reason = _refused(error)
        if not reason and not is_local(path):  # its package has errors of its own
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if not reason:
            raise
        raise WorkdirError(
            f"{path} cannot be read or written: {reason}. Mend that and repeat the run, which "
            "continues from its last checkpoint, or choose another workdir."
        ) from error


def _refused(error: Exception) -> str:
    """What the operating system says, if an error is of it."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    # TensorStore, which writes the checkpoints, has the number in the text of a ValueError.
    found = re.search(r"(?:OS error |os_error_code=')(\d+)", str(error))
    return os.strerror(int(found[1])) if found and isinstance(error, OSError | ValueError) else ""


def files(folder: Path) -> Iterator[Path]:
    """All files in a folder and the folders in it."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from files(path)
        else:
            yield path


def copy(source: Path, target: Path) -> None:
    """Copies a file from any place to any other."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as read, target.open("wb") as write:
        shutil.copyfileobj(read, write)


def move(folder: Path, to: Path) -> None:
    """Moves a folder. A store has none: there, its files are copied."""
    if is_local(folder):
        folder.rename(to)
        return
    for path in list(files(folder)):
        copy(path, to / path.relative_to(folder))
    folder.rmtree()  # type: ignore[attr-defined]
