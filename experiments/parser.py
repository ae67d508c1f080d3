"""Command lines of the tools beside the launchers."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """A parser that takes whole names only, and answers a mistake in one line."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # --seed would be --seeds
        )

    def error(self, message: str) -> NoReturn:
        sys.exit(f"error: {message}; --help shows the usage.")
