"""Converted data sets on disk: checked when they are read, never half-written."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_logger = logging.getLogger(__name__)

_MANIFEST = "manifest.json"


def default_dir(name: str) -> Path:
    """Where the data set `name` is kept: `metajax/name` in `$XDG_CACHE_HOME` or `~/.cache`."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "metajax" / name


def cached(
    directory: str | os.PathLike[str],
    identity: Mapping[str, Any],
    build: Callable[[Path], str],
    origin: Callable[[], str] = str,
    *,
    compare: bool = False,
) -> dict[str, np.ndarray]:
    """Returns the arrays kept in `directory`, built first where they are absent or damaged.

    Each array is a plain `.npy` file; a manifest beside them holds `identity`, where the data came
    from, and the SHA-256 of each file. All of it is checked at every call, 1 GB in about a second.
    Processes that find nothing build one after the other; the later ones find what the first made.

    Args:
      directory: where the files are; made if need be.
      identity: JSON data that says what the arrays are. Arrays of another identity are rebuilt.
      build: writes `<name>.npy` files into the directory it is given and returns in words where
        the data came from.

    Returns:
      The arrays by name, mapped read-only from their files.
    """
    directory = Path(directory).expanduser()
    wanted = json.loads(json.dumps(identity))
    asked = origin() if compare else None
    distrusted: list[str] = []
    stored = _read(directory, wanted, asked, distrusted)
    if stored is not None:
        return stored
    directory.mkdir(parents=True, exist_ok=True)
    with _alone(directory):
        # Another process may have built it in the meantime.
        stored = _read(directory, wanted, asked)
        if stored is None:
            _write(directory, wanted, build, origin)
            for reason in distrusted:
                _logger.warning("rebuilt the data in %s: %s", directory, reason)
            stored = _read(directory, wanted, None)
    if stored is None:
        raise OSError(f"what was just written to {directory} reads back differently")
    return stored


def _read(
    directory: Path, identity: Any, origin: str | None, distrusted: list[str] | None = None
) -> dict[str, np.ndarray] | None:
    """Returns what `_write` wrote, or None where it is absent or, for a reason, distrusted."""
    try:
        manifest = json.loads((directory / _MANIFEST).read_text())
        if manifest["identity"] != identity:
            raise ValueError("it was made by another version, or holds other classes or sizes")
        if origin not in (None, manifest.get("origin")):
            raise ValueError("it was made from other data than those that are named now")
        names = tuple(manifest["sha256"])
        with concurrent.futures.ThreadPoolExecutor() as pool:
            found = tuple(pool.map(_digest, [_file(directory, name) for name in names]))
        for name, digest in zip(names, found, strict=True):
            if digest != manifest["sha256"][name]:
                raise ValueError(f"the checksum of {name}.npy does not match")
        return {name: np.load(_file(directory, name), mmap_mode="r") for name in names}
    except FileNotFoundError as error:
        reason = f"{error.filename} is gone"
        absent = Path(error.filename).name == _MANIFEST
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason, absent = str(error), False
    if distrusted is not None and not absent:
        distrusted.append(reason)
    return None


def _write(
    directory: Path, identity: Any, build: Callable[[Path], str], origin: Callable[[], str]
) -> None:
    # Written aside and moved into place, the manifest last: without it nothing else counts.
    partial = directory / "partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    try:
        source = build(partial)
        files = sorted(partial.glob("*.npy"))
        sha256 = {file.stem: _digest(file) for file in files}
        manifest = {"identity": identity, "source": source, "origin": origin(), "sha256": sha256}
        (partial / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        (directory / _MANIFEST).unlink(missing_ok=True)
        for file in [*files, partial / _MANIFEST]:
            file.replace(directory / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Waits until no other process builds in `directory`."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        yield
        return
    with (directory / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # given back with the file, by a kill too
        yield


def _file(directory: Path, name: str) -> Path:
    return directory / f"{name}.npy"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
