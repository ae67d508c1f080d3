"""What is installed: `metajax`, or `python -m metajax`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform

import jax

import metajax
from metajax.extras import EXTRAS, missing


def main() -> None:
    """Prints versions, devices and extras, for a report of a bug, and where the launchers are."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")}
    shown = [f"metajax {metajax.__version__}", f"Python {platform.python_version()}"]
    print(", ".join([*shown, *(f"{name} {version}" for name, version in versions.items())]))
    print(f"devices: {', '.join(map(str, jax.devices()))}")
    for extra, modules in EXTRAS.items():
        absent = missing(*modules)
        state = f'without {", ".join(absent)}: pip install "metajax[{extra}]"'
        print(f"extra {extra}: {state if absent else 'installed'}")
    if importlib.util.find_spec("experiments") is None:
        print(
            "launchers: not part of the package. Clone the repository of metajax, and run\n"
            "  python -m experiments\nin its folder, which lists them."
        )
    else:
        print("launchers: python -m experiments lists them")


if __name__ == "__main__":
    main()
