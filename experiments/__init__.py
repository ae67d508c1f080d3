"""The launchers; `python -m experiments` lists them."""

import sys
from typing import Any


def _report(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Reports an error that ends a launcher, without the traceback of an interrupted import.

    What threads of TensorStore report after a failed checkpoint is left out: it has a line.
    """
    if kind is KeyboardInterrupt:
        print("error: interrupted.", file=sys.stderr)
    elif not (kind is RuntimeError and str(error) == "Event loop is closed"):
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _report  # before the imports that take seconds

from metajax.extras import require  # noqa: E402

require("a launcher", "experiments")
