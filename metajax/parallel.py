"""Tasks in parallel: under `vmap`, in chunks that fit a cache, over the devices of a mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

from metajax.base import Array, PyTree, check_integer, equal_chunk, inexact_leaves
from metajax.machine import CPU_CHUNK_BYTES, CPU_CHUNK_TASKS


def task_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh with the single axis `"tasks"`, for the `mesh` argument of every learner.

    Args:
      num_devices: how many devices; by default all, those of other processes included once
        `jax.distributed.initialize()` has joined them.

    Raises:
      ValueError: if there are fewer devices.

    Example:

    >>> import jax.numpy as jnp, optax, metajax
    >>> loss = lambda params, batch, rng: (jnp.mean((params - batch) ** 2), {})
    >>> learner = metajax.maml(
    ...     loss, optax.sgd(0.1), optax.adam(1e-3), mesh=metajax.task_mesh(1))
    """
    devices = jax.devices()
    if num_devices is None:
        num_devices = len(devices)
    if check_integer("task_mesh: num_devices", num_devices) > len(devices):
        raise ValueError(
            f"task_mesh: {num_devices} devices asked for, {len(devices)} "
            f"({jax.default_backend()}) are here. A CPU shows more of them after "
            f'jax.config.update("jax_num_cpu_devices", n), before its first use.'
        )
    return Mesh(np.asarray(devices[:num_devices]), ("tasks",))


def over_tasks(
    fn: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]],
    *,
    task_chunk: int | None = None,
    mesh: Mesh | None = None,
    stack: bool = False,
) -> Callable[..., tuple[PyTree, PyTree]]:
    """Runs a function of a chunk of tasks over all tasks: the only task map of the library.

    The devices of a mesh share the tasks equally. On each, chunks follow each other in a scan, so
    that memory grows with `task_chunk` and not with the number of tasks. The result does not
    depend on either beyond rounding.

    Args:
      fn: `(shared, tasks, carry) -> (result, carry)` on a chunk of tasks, leaves
        `[chunk, ...]`. The result is the mean over the chunk or, with `stack`, one per task
        `[chunk, ...]`; the carry is handed from chunk to chunk.
      task_chunk: tasks per chunk; a last, smaller chunk takes the rest. `None` leaves the choice
        to `default_chunk`.
      mesh: devices, such as `task_mesh()`; the results of all are averaged by one all-reduce.
      stack: concatenate the chunks' results `[tasks, ...]` instead of averaging over tasks.

    Returns:
      `(shared, tasks, carry=()) -> (result, carry)` on leaves `[tasks, ...]`.

    Raises:
      ValueError: if `task_chunk` is not a positive integer or `mesh` no mesh; when traced, if the
        devices cannot share the tasks equally, or a carry would have to pass from device to
        device.
    """
    if task_chunk is not None:
        task_chunk = check_integer("task_chunk", task_chunk)
    if mesh is not None and not isinstance(mesh, Mesh):
        raise ValueError(f"mesh must be a jax.sharding.Mesh such as task_mesh(), got {mesh!r}.")

    def on_one_device(shared: PyTree, tasks: PyTree, carry: PyTree) -> tuple[PyTree, PyTree]:
        num_tasks = _num_tasks(tasks)
        chunk = task_chunk or default_chunk(shared, tasks, mesh)
        if chunk >= num_tasks:
            return fn(shared, tasks, carry)
        num_chunks, rest = divmod(num_tasks, chunk)
        split = num_chunks * chunk

        def weighted(total: PyTree, result: PyTree, weight: float) -> PyTree:
            # Integers (step counts of an optimizer) are equal over tasks: kept, not averaged.
            return jax.tree.map(
                lambda t, r: t + weight * r if jnp.issubdtype(r.dtype, jnp.inexact) else r,
                total,
                result,
            )

        def chunk_at(start: Array) -> PyTree:
            return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, chunk), tasks)

        def body(carried, start):
            # Not over reshaped tasks, of which XLA would make a copy first.
            total, carry = carried
            result, carry = fn(shared, chunk_at(start), carry)
            if stack:
                return (total, carry), result
            return (weighted(total, result, chunk / num_tasks), carry), ()

        starts = chunk * jnp.arange(num_chunks)
        first = jax.eval_shape(chunk_at, starts[0])
        shapes = () if stack else jax.eval_shape(fn, shared, first, carry)[0]
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        (result, carry), stacked = jax.lax.scan(body, (zeros, carry), starts)
        if stack:
            result = jax.tree.map(lambda x: x.reshape(split, *x.shape[2:]), stacked)
        if rest:
            tail, carry = fn(shared, jax.tree.map(lambda x: x[split:], tasks), carry)
            if stack:
                result = jax.tree.map(lambda *xs: jnp.concatenate(xs), result, tail)
            else:
                result = weighted(result, tail, rest / num_tasks)
        return result, carry

    def mapped(shared: PyTree, tasks: PyTree, carry: PyTree = ()) -> tuple[PyTree, PyTree]:
        if mesh is None:
            return on_one_device(shared, tasks, carry)
        if jax.tree.leaves(carry):
            raise ValueError(
                "over_tasks: what is handed from task to task cannot cross the devices of a mesh."
            )
        num_tasks, axes = _num_tasks(tasks), mesh.axis_names
        if num_tasks % mesh.size:
            raise ValueError(
                f"{num_tasks} tasks cannot be shared equally by the {mesh.size} devices of the "
                f"mesh: make their number a multiple of {mesh.size}."
            )

        def on_each(shared: PyTree, tasks: PyTree) -> PyTree:
            result, _ = on_one_device(shared, tasks, ())
            return result if stack else _mean_over_devices(result, axes)

        # Unchecked: derivatives are taken inside, with no collective in them, and whether a value
        # varies over devices is then nothing that a loss function has to declare in its scans.
        across = jax.shard_map(
            on_each,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(axes)),
            out_specs=PartitionSpec(axes) if stack else PartitionSpec(),
            check_vma=False,
        )
        return across(shared, tasks), ()

    return mapped


def default_chunk(shared: PyTree, tasks: PyTree, mesh: Mesh | None = None) -> int:
    """The tasks per `vmap` where none are asked for.

    An accelerator takes all tasks of a device at once. A CPU takes at most `CPU_CHUNK_TASKS`, no
    more than keep the parameters and data of a chunk within `CPU_CHUNK_BYTES`: small tasks are
    bound by the number of operations and gain from each other's company, large ones by its cache,
    and lose.
    """
    num_tasks = _num_tasks(tasks)
    platform = mesh.devices.flat[0].platform if mesh is not None else jax.default_backend()
    if platform != "cpu":
        return num_tasks
    bytes_per_task = _num_bytes(shared) + _num_bytes(tasks) / num_tasks
    limit = min(CPU_CHUNK_TASKS, int(CPU_CHUNK_BYTES // max(bytes_per_task, 1)))
    return equal_chunk(num_tasks, limit)


def map_tasks(fn: Callable[..., PyTree], *tasks: PyTree) -> PyTree:
    """`jax.vmap(fn)(*tasks)`, by a plain call where there is one task only."""
    if _num_tasks(tasks) > 1:
        return jax.vmap(fn)(*tasks)
    # Without a batch axis XLA is free to transpose the products of weight gradients.
    result = fn(*jax.tree.map(lambda x: x[0], tasks))
    return jax.tree.map(lambda x: jnp.expand_dims(x, 0), result)


def _mean_over_devices(tree: PyTree, axes: Any) -> PyTree:
    """Averages all floating-point leaves over devices, as one vector: one all-reduce."""
    leaves, treedef = jax.tree.flatten(tree)
    flat, unravel = ravel_pytree(inexact_leaves(leaves))
    means = unravel(jax.lax.pmean(flat, axes))
    return jax.tree.unflatten(treedef, [means.get(i, leaf) for i, leaf in enumerate(leaves)])


def _num_tasks(tasks: PyTree) -> int:
    return jax.tree.leaves(tasks)[0].shape[0]


def _num_bytes(tree: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
