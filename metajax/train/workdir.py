"""The working directory of a run: its lock, the configuration that claims it, and provenance."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import jax

from metajax.machine import num_cores, processor
from metajax.train.places import WorkdirError, accessing, is_local

PACKAGES = ("metajax", "jax", "jaxlib", "flax", "optax", "numpy")
# Environment variables that change the speed or the numbers of a run.
ENVIRONMENT = (
    "GLIBC_TUNABLES",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "JAX_ENABLE_X64",
    "MALLOC_MMAP_MAX_",
    "MALLOC_TRIM_THRESHOLD_",
    "XLA_FLAGS",
)
# Of JAX, what changes the numbers of a run, and its default. The names are also those of the
# environment variables.
NUMERICS = {
    "JAX_ENABLE_X64": False,
    "JAX_DEFAULT_PRNG_IMPL": "threefry2x32",
    "JAX_THREEFRY_PARTITIONABLE": True,
    "JAX_DEFAULT_MATMUL_PRECISION": None,
}
CONFIG = "config.json"
LOCK = "lock"
# The only entry of a run without a configuration.
DIGESTS = "digests"
# The entry of a configuration that may grow, and the entry for its earlier values.
LENGTH, EARLIER_LENGTHS = "num_meta_steps", "earlier_num_meta_steps"

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keeps other processes from running in a working directory, as long as the context lasts.

    The operating system gives the lock back when the process ends, however it ends. Contexts of one
    thread may be nested. A store has no locks, which a warning says.

    Raises:
      WorkdirError: if another process runs there, or there can be no such directory.
    """
    if not is_local(workdir):
        _logger.warning("%s cannot be locked: start one run at a time there.", workdir)
        yield
        return
    lock = filelock.FileLock(workdir / LOCK, timeout=0, is_singleton=True)
    with contextlib.ExitStack() as stack:
        _make(workdir)
        with accessing(workdir):
            try:
                stack.enter_context(lock)
            except filelock.Timeout:
                raise WorkdirError(
                    f"{workdir} is in use by another process: wait until its run has ended, or "
                    "choose another workdir."
                ) from None
        yield


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically: a reader sees the old file or the new one."""
    text = json.dumps(value, indent=2, allow_nan=True) + "\n"
    with accessing(path):
        if not is_local(path):  # a store shows a file when all of it is there
            path.write_text(text)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(text)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def claim(workdir: Path, config: Mapping[str, Any]) -> None:
    """Claims `workdir` for a configuration, or checks that it was claimed for the same one.

    A larger `num_meta_steps` lengthens the run. `config.json` keeps the earlier lengths as
    `earlier_num_meta_steps`, because a schedule may have depended on them. It also has what JAX
    computes with, such as `JAX_ENABLE_X64`, where that is not the default.

    Raises:
      ValueError: if the configuration is not JSON data.
      WorkdirError: if the directory holds a run of another configuration, with the difference; if
        it holds checkpoints without a configuration; or if it is not a directory.
    """
    path, wanted = workdir / CONFIG, _json_data(config)
    for name in (EARLIER_LENGTHS, *NUMERICS):  # present if `read_config` returned them
        wanted.pop(name, None)
    wanted |= _numerics()
    found = _existing_claim(workdir)
    if found is None:
        write_json(path, wanted)
        return
    if found.keys() == {DIGESTS}:
        raise WorkdirError(
            f"{workdir} holds a run that was begun without config=: omit config= to continue "
            "that run, or choose another workdir."
        )
    earlier = found.pop(EARLIER_LENGTHS, [])
    if not isinstance(earlier, list):
        raise WorkdirError(f"{path} has no list in {EARLIER_LENGTHS}; choose another workdir.")
    differing = [name for name in sorted({*found, *wanted}) if not _same(name, found, wanted)]
    lengths = found.get(LENGTH, 0), wanted.get(LENGTH, 0)
    grown = all(isinstance(each, int) for each in lengths) and lengths[0] < lengths[1]
    if differing == [LENGTH] and grown:
        write_json(path, {**wanted, EARLIER_LENGTHS: [*earlier, found[LENGTH]]})
    elif differing:
        lines = [
            f"  {name}: {_shown(name, found)} there, {_shown(name, wanted)} here"
            for name in differing
        ]
        raise WorkdirError(
            f"{workdir} holds a run of another configuration:\n"
            + "\n".join(lines)
            + "\nUse that configuration to continue the run, or choose another workdir."
        )


def claim_by_digests(workdir: Path, digests: Mapping[str, str]) -> None:
    """Claims `workdir` for a run without a configuration, or checks that it is the same run.

    Args:
      workdir: the directory.
      digests: the digests of the parts of the run, by name.

    Raises:
      WorkdirError: if the directory holds checkpoints of another run, or is not a directory.
    """
    found = _existing_claim(workdir)
    if found and found.keys() != {DIGESTS}:
        raise WorkdirError(
            f"{workdir} holds a run that was begun with config=: pass its configuration to "
            "continue it, or choose another workdir."
        )
    there = found[DIGESTS] if found else digests  # none in an old run
    if not isinstance(there, dict):
        raise WorkdirError(f"{workdir / CONFIG} has no digests; choose another workdir.")
    differing = sorted(name for name in {*there, *digests} if there.get(name) != digests.get(name))
    if differing and _has_checkpoints(workdir):
        raise WorkdirError(
            f"{workdir} holds another run, which differs in: {', '.join(differing)}. Repeat that "
            "run to continue it, or choose another workdir. With config=, only the configuration "
            "is compared."
        )
    write_json(workdir / CONFIG, {DIGESTS: dict(digests)})


def unclaim(workdir: Path) -> None:
    """Takes a claim back whose run has not begun, so that another one may have the directory."""
    kept = ("metrics.jsonl", "result.json")
    if not (_has_checkpoints(workdir) or any((workdir / name).exists() for name in kept)):
        (workdir / CONFIG).unlink(missing_ok=True)


def read_config(workdir: Path) -> dict[str, Any]:
    """Reads the configuration of the run in `workdir`, with its earlier lengths.

    Raises:
      WorkdirError: if `config.json` does not exist or is not a JSON object.
    """
    path = workdir / CONFIG
    if not path.exists():
        raise WorkdirError(f"{path} does not exist: train a run there first.")
    return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file of `write_json` that holds a JSON object.

    Raises:
      WorkdirError: if it cannot be read or holds something else.
    """
    try:
        with accessing(path):
            value = json.loads(path.read_text())
    except ValueError as error:
        if isinstance(error, WorkdirError):
            raise
        raise WorkdirError(f"{path} is not valid JSON ({error}); choose another workdir.") from None
    if not isinstance(value, dict):
        raise WorkdirError(f"{path} is not a JSON object; choose another workdir.")
    return value


def _existing_claim(workdir: Path) -> dict[str, Any] | None:
    """The contents of `config.json`; `None` if there is no run yet."""
    _make(workdir)
    if (workdir / CONFIG).exists():
        return read_config(workdir)
    if _has_checkpoints(workdir):
        raise WorkdirError(
            f"{workdir} holds checkpoints but no {CONFIG} to identify their run: choose "
            "another workdir, or remove the checkpoints to start anew."
        )
    return None


def _make(workdir: Path) -> None:
    if not is_local(workdir):
        with accessing(workdir):
            workdir.exists()  # what keeps from reading it is found out before anything else
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkdirError(
            f"{workdir} cannot be made a directory ({error.strerror}): choose another workdir."
        ) from None


def _numerics() -> dict[str, Any]:
    """What JAX computes with, other than by default."""
    found = {name: getattr(jax.config, name.lower()) for name in NUMERICS}
    return {name: value for name, value in found.items() if value != NUMERICS[name]}


def _has_checkpoints(workdir: Path) -> bool:
    return any((workdir / "checkpoints").glob("*"))


def _json_data(config: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(config, Mapping):
        raise ValueError(f"config must be a dict of JSON data, got {type(config).__name__}.")
    data: dict[str, Any] = {}
    for name, value in config.items():
        try:
            data |= json.loads(json.dumps({name: value}))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"config[{name!r}] is not JSON data ({error}): use numbers, strings, and lists and "
                "dicts of them, such as float(x) for an array."
            ) from None
    return data


def _same(name: str, there: dict[str, Any], here: dict[str, Any]) -> bool:
    """Whether an entry is equal in both; NaN equals NaN."""
    if _shown(name, there) == _shown(name, here):
        return True
    return name in there and name in here and there[name] == here[name]


def _shown(name: str, config: dict[str, Any]) -> str:
    return json.dumps(config[name], sort_keys=True) if name in config else "absent"


@functools.cache
def provenance() -> dict[str, Any]:
    """The origin of a result: device, versions, environment and commit, as JSON data.

    Determined once per process: a commit made during a run is not the one that runs.
    """
    return {
        "device": _device(),
        "versions": _versions(),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "commit": _commit(),
    }


def _device() -> dict[str, Any]:
    devices = jax.devices()
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        kind = processor() or kind
    return {
        "platform": devices[0].platform,
        "kind": kind,
        "count": len(devices),
        "cpu_cores": num_cores(),
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _commit() -> str | None:
    """The commit of the library, with `-dirty` if its code has changed since.

    `$METAJAX_COMMIT`, where it is set, as in a container without the repository.
    """
    if named := os.environ.get("METAJAX_COMMIT"):
        return named
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        status = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no", "--", ":/*.py"],
            capture_output=True,
            text=True,
        )
    except OSError:
        return None
    if head.returncode:
        return None
    return head.stdout.strip() + ("-dirty" if status.stdout.strip() else "")
