"""Keeps a leak of TensorStore out of long runs.

TensorStore never frees the values of the JSON that it hands to Python (from 0.1.74 to 0.1.86,
the newest). When orbax saves, it asks for such JSON once for each array, to see whether a path is
local, and for the counters of bytes, which it logs: 30 kB for each checkpoint of a small network,
and so 250 MB in a day with a checkpoint every ten seconds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from orbax.checkpoint._src.serialization import tensorstore_utils

tensorstore = tensorstore_utils.ts


class _Spec(NamedTuple):
    json: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return self.json


class _KvStore:
    """As `tensorstore.KvStore`; a description stays the JSON that it was made from."""

    Spec = _Spec

    def __getattr__(self, name: str) -> Any:
        return getattr(tensorstore.KvStore, name)


class _TensorStore:
    """As the module `tensorstore`, without the conversions that leak and without counters."""

    KvStore = _KvStore()

    def __getattr__(self, name: str) -> Any:
        return getattr(tensorstore, name)

    def experimental_collect_matching_metrics(self, prefix: str) -> list[dict[str, Any]]:
        return []


@contextlib.contextmanager
def without_leak() -> Iterator[None]:
    """Orbax saves the same files inside of this, and memory stays as it is."""
    tensorstore_utils.ts = _TensorStore()
    try:
        yield
    finally:
        tensorstore_utils.ts = tensorstore
