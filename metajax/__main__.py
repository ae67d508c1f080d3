"""The command `metajax`, also `python -m metajax`: what is installed, and the launchers."""

from __future__ import annotations

import importlib.metadata
import platform
import runpy
import sys
from pathlib import Path

import jax

import metajax
from metajax.extras import EXTRAS, missing

# In a checkout the launchers are beside the package.
ROOT = Path(metajax.__file__).parents[1]
ELSEWHERE = (
    "not part of the package. Clone the repository of metajax, and run\n"
    "  python -m experiments\nin its folder, which lists them."
)


def main() -> None:
    """Starts the launcher that is named, or prints what is installed."""
    words = sys.argv[1:]
    if words and words[0] not in ("-h", "--help"):
        start(*words)
    else:
        report()


def start(name: str, *words: str) -> None:
    """Starts a launcher of the checkout that is installed, from any folder."""
    if not (ROOT / "experiments").is_dir():
        sys.exit(f"error: the launchers are {ELSEWHERE}")
    sys.path.insert(0, str(ROOT))
    name = "__main__" if name == "list" else name
    if not _can_start(name):
        sys.exit(f"error: there is no launcher {name}: `metajax list` lists them.")
    sys.argv = [f"experiments.{name}", *words]
    runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)


def _can_start(name: str) -> bool:
    """Whether `python -m experiments.NAME` does something."""
    places = [f"{name}.py", f"{name}/__main__.py"]
    found = (path for place in places if (path := ROOT / "experiments" / place).is_file())
    return name.isidentifier() and any('if __name__ == "__main__":' in x.read_text() for x in found)


def report() -> None:
    """Prints versions, devices and extras, for a report of a bug, and where the launchers are."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")}
    shown = [f"metajax {metajax.__version__}", f"Python {platform.python_version()}"]
    print(", ".join([*shown, *(f"{name} {version}" for name, version in versions.items())]))
    print(f"devices: {', '.join(map(str, jax.devices()))}")
    for extra, modules in EXTRAS.items():
        absent = missing(*modules)
        state = f'without {", ".join(absent)}: pip install "metajax[{extra}]"'
        print(f"extra {extra}: {state if absent else 'installed'}")
    if (ROOT / "experiments").is_dir():
        print("launchers: `metajax list` lists them, `metajax sinusoid` starts one")
    else:
        print(f"launchers: {ELSEWHERE}")


if __name__ == "__main__":
    main()
