"""What the processes of a run have to agree on; a run of one process agrees with itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from metajax.base import Array, PyTree
from metajax.train.places import WorkdirError


def is_first() -> bool:
    """Whether this process writes the files of a run."""
    return jax.process_index() == 0


def from_first(fn: Callable[[], Any]) -> Any:
    """What `fn` returns in the first process, JSON data, in every process.

    An error of the first process is a `WorkdirError` of the same words in the others.
    """
    if jax.process_count() == 1:
        return fn()
    failed: Exception | None = None
    found: Any = None
    if is_first():
        try:
            found = {"value": fn()}
        except Exception as error:
            failed, found = error, {"error": str(error)}
    answer = json.loads(_broadcast(json.dumps(found)))
    if failed is not None:
        raise failed
    if "error" in answer:
        raise WorkdirError(answer["error"])
    return answer["value"]


def _broadcast(text: str) -> str:
    data = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(data.size)))
    padded = data if data.size == size else np.zeros(size, np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8)).decode()


def on_mesh(mesh: Mesh | None, tree: PyTree) -> PyTree:
    """The arrays on all devices of a mesh; what is sharded over it already stays as it is.

    Compiled, because that takes keys of random numbers, and compares nothing between processes.
    """
    if mesh is None:
        return tree
    return jax.jit(lambda x: x, out_shardings=shardings(mesh, tree))(tree)


def shardings(mesh: Mesh, tree: PyTree) -> PyTree:
    """How `on_mesh` places each array."""

    def of(x: Any) -> NamedSharding:
        found = getattr(x, "sharding", None)
        if isinstance(found, NamedSharding) and found.mesh == mesh:
            return found
        return replicated(mesh)

    return jax.tree.map(of, tree)


def local(tree: PyTree) -> PyTree:
    """The arrays on the default device of this process, uncommitted, like those of a new run."""

    def of(x: Any) -> Array:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(of(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        return jnp.asarray(np.asarray(x))

    return jax.tree.map(of, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device of a mesh."""
    return NamedSharding(mesh, PartitionSpec())
