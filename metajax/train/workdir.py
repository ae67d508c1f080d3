"""What a run leaves on disk besides its checkpoints: configuration and provenance."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("metajax", "jax", "jaxlib", "flax", "optax", "numpy")
# What changes speed or numbers from outside of the program.
ENVIRONMENT = (
    "GLIBC_TUNABLES",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "JAX_ENABLE_X64",
    "MALLOC_MMAP_MAX_",
    "MALLOC_TRIM_THRESHOLD_",
    "XLA_FLAGS",
)
# What of a configuration may grow, and where a run keeps what it was before.
LENGTH, EARLIER_LENGTHS = "num_meta_steps", "earlier_num_meta_steps"


class WorkdirError(ValueError):
    """The working directory cannot be used for what was asked."""


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file at once: a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=2, allow_nan=True) + "\n")
    os.replace(temporary, path)


def claim(workdir: Path, config: Mapping[str, Any]) -> None:
    """Makes `workdir` this configuration's, or checks that it already is.

    A larger `num_meta_steps` is no other configuration, it lengthens the run. `config.json` keeps
    its earlier lengths as `earlier_num_meta_steps`, as a schedule over the whole run saw them.

    Raises:
      WorkdirError: if it holds a run of another configuration; the message shows the difference.
        Also if it holds checkpoints of an unknown one.
    """
    path = workdir / "config.json"
    wanted = json.loads(json.dumps(dict(config)))
    if not path.exists():
        if any((workdir / "checkpoints").glob("*")):
            raise WorkdirError(
                f"{workdir} holds checkpoints, but no {path.name} that says of what: choose "
                "another workdir, or remove its checkpoints to start anew."
            )
        write_json(path, wanted)
        return
    found = read_config(workdir)
    earlier = found.pop(EARLIER_LENGTHS, [])
    missing = object()
    differing = [
        name
        for name in sorted({*found, *wanted})
        if found.get(name, missing) != wanted.get(name, missing)
    ]
    if differing == [LENGTH] and found.get(LENGTH, 0) < wanted.get(LENGTH, 0):
        write_json(path, {**wanted, EARLIER_LENGTHS: [*earlier, found[LENGTH]]})
    elif differing:
        lines = [
            f"  {name}: {_shown(found.get(name, missing), missing)} there, "
            f"{_shown(wanted.get(name, missing), missing)} here"
            for name in differing
        ]
        raise WorkdirError(
            f"{workdir} holds a run of another configuration:\n"
            + "\n".join(lines)
            + "\nRepeat that configuration to continue it, or choose another workdir."
        )


def read_config(workdir: Path) -> dict[str, Any]:
    """The configuration of the run in `workdir`, with the lengths it had before.

    Raises:
      WorkdirError: if there is none, or what is there is not JSON.
    """
    path = workdir / "config.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise WorkdirError(f"{path} does not exist: train a run there first.") from None
    except json.JSONDecodeError as error:
        raise WorkdirError(f"{path} is not valid JSON ({error}); choose another workdir.") from None


def _shown(value: Any, missing: object) -> str:
    return "absent" if value is missing else json.dumps(value)


@functools.cache
def provenance() -> dict[str, Any]:
    """Where a result comes from: device, versions, environment and commit, as JSON data.

    Found once per process: a commit made while a run goes on is not the one that runs.
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
        kind = _cpu_name() or kind
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "platform": devices[0].platform,
        "kind": kind,
        "count": len(devices),
        "cpu_cores": cores,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _commit() -> str | None:
    """The commit the library was run from; `-dirty` where its code differs from it.

    Outside a git repository, as in a container, what `$METAJAX_COMMIT` says.
    """
    elsewhere = os.environ.get("METAJAX_COMMIT")
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        status = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no", "--", ":/*.py"],
            capture_output=True,
            text=True,
        )
    except OSError:
        return elsewhere
    if head.returncode:
        return elsewhere
    return head.stdout.strip() + ("-dirty" if status.stdout.strip() else "")
