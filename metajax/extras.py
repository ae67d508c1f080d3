"""The extras: which modules each brings, and what to say where one is missing."""

from __future__ import annotations

import importlib.util

EXTRAS = {
    "experiments": (
        "PIL",
        "absl",
        "filelock",
        "matplotlib",
        "orbax.checkpoint",
        "safetensors",
        "tensorboardX",
        "tqdm",
    ),
    "data": ("PIL", "array_record", "importlib_resources", "tensorflow_datasets", "tqdm"),
    "rl": ("brax", "gymnax", "mujoco"),
}


def missing(*modules: str) -> list[str]:
    """Those of the modules that are not installed. Nothing is imported but their parents."""
    return [name for name in modules if not _found(name)]


def _found(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the parent
        return False


def require(what: str, extra: str, *modules: str) -> None:
    """Says in one line which extra to install.

    Args:
      what: what needs the modules.
      extra: the extra that brings them.
      *modules: by default all of the extra.

    Raises:
      ImportError: if one of the modules is not installed.
    """
    if absent := missing(*modules or EXTRAS[extra]):
        raise ImportError(f'{what} needs {", ".join(absent)}: pip install "metajax[{extra}]"')
