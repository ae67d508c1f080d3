"""The launchers; `python -m experiments` lists them."""

import logging
import sys
from typing import Any


def _report(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Reports an error that ends a launcher, without the traceback of an interrupted import."""
    if kind is KeyboardInterrupt:
        print("error: interrupted.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _report_unraisable(report: Any) -> None:
    """Leaves out what threads of TensorStore report after a failed checkpoint, which has a line."""
    if not (report.exc_type is RuntimeError and str(report.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(report)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record of asyncio tells more than that other writes of a checkpoint failed too."""
    return "exception was never retrieved" not in record.getMessage()


logging.getLogger("asyncio").addFilter(_is_news)
sys.excepthook = _report  # before the imports that take seconds
sys.unraisablehook = _report_unraisable

from metajax.extras import require  # noqa: E402

require("a launcher", "experiments")
