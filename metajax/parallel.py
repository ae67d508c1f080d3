"""Maps over tasks: by `vmap`, in chunks that fit a cache, and over the devices of a mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

from metajax.base import (
    Array,
    PyTree,
    check_function,
    check_integer,
    inexact_leaves,
    leading_size,
)
from metajax.machine import CPU_CHUNK_BYTES, CPU_CHUNK_TASKS, equal_chunk

TASKS = "tasks"  # the axis of a mesh that the tasks are shared over


def task_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh with the single axis `"tasks"`, for the `mesh` argument of every learner.

    Args:
      num_devices: the number of devices. By default all, which include the devices of other
        processes after `jax.distributed.initialize()`.

    Raises:
      ValueError: if `num_devices` is not a positive integer or there are fewer devices.

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
            f"task_mesh: {num_devices} devices requested, but there are {len(devices)} "
            f"({jax.default_backend()}). A CPU has n devices after "
            'jax.config.update("jax_num_cpu_devices", n), called before its first use.'
        )
    return Mesh(np.asarray(devices[:num_devices]), (TASKS,))


def over_tasks(
    fn: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]],
    *,
    task_chunk: int | None = None,
    mesh: Mesh | None = None,
    stack: bool = False,
) -> Callable[..., tuple[PyTree, PyTree]]:
    """Maps a function of a chunk of tasks over all tasks: the only task map of the library.

    The axis `"tasks"` of a mesh shares the tasks equally; its other axes, such as one that the
    parameters are sharded over, are left to the compiler. Each device scans over its chunks, so
    memory grows with `task_chunk` and not with the number of tasks. The result depends on neither
    beyond rounding.

    Args:
      fn: `(shared, tasks, carry) -> (result, carry)` for one chunk, where the leaves of `tasks` are
        `[chunk, ...]`. The result is the mean over the chunk or, with `stack`, has one entry per
        task, `[chunk, ...]`. The carry passes from each chunk to the next.
      task_chunk: tasks per chunk; a smaller last chunk takes the remainder. By default
        `default_chunk` chooses.
      mesh: devices, such as `task_mesh()`; one all-reduce averages their results.
      stack: concatenate the results of the chunks to `[tasks, ...]` instead of averaging them.

    Returns:
      `(shared, tasks, carry=()) -> (result, carry)`, where the leaves of `tasks` are
      `[tasks, ...]`.

    Raises:
      ValueError: if `task_chunk` is not a positive integer or `mesh` not a mesh with the axis
        `"tasks"`; when traced, if the devices cannot share the tasks equally, or for a carry on a
        mesh.

    Example, the mean of squares in chunks of two tasks:

    >>> import jax.numpy as jnp, metajax
    >>> def mean_square(shared, tasks, carry):
    ...     return jnp.mean((shared * tasks) ** 2), carry
    >>> mean, _ = metajax.over_tasks(mean_square, task_chunk=2)(2.0, jnp.arange(4.0))
    >>> float(mean)
    14.0
    """
    check_function("over_tasks: fn", fn, "shared, tasks, carry")
    if task_chunk is not None:
        task_chunk = check_integer("task_chunk", task_chunk)
    check_mesh("mesh", mesh)

    def on_one_device(shared: PyTree, tasks: PyTree, carry: PyTree) -> tuple[PyTree, PyTree]:
        num_tasks = leading_size("tasks", tasks, "task")
        chunk = task_chunk or default_chunk(shared, tasks, mesh)
        if chunk >= num_tasks:
            return fn(shared, tasks, carry)
        num_chunks, rest = divmod(num_tasks, chunk)
        split = num_chunks * chunk

        def weighted(total: PyTree, result: PyTree, weight: float, start: Array | int) -> PyTree:
            # Integers, such as an optimizer's step count, are those of the first task.
            return jax.tree.map(
                lambda t, r: (
                    t + weight * r
                    if jnp.issubdtype(r.dtype, jnp.inexact)
                    else jnp.where(start == 0, r, t)
                ),
                total,
                result,
            )

        def chunk_at(start: Array) -> PyTree:
            return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, chunk), tasks)

        def body(carried, start):
            # Slices, because a scan over reshaped tasks would make XLA copy them first.
            total, carry = carried
            result, carry = fn(shared, chunk_at(start), carry)
            if stack:
                return (total, carry), result
            return (weighted(total, result, chunk / num_tasks, start), carry), ()

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
                result = weighted(result, tail, rest / num_tasks, split)
        return result, carry

    def mapped(shared: PyTree, tasks: PyTree, carry: PyTree = ()) -> tuple[PyTree, PyTree]:
        if mesh is None:
            return on_one_device(shared, tasks, carry)
        if jax.tree.leaves(carry):
            raise ValueError(
                "over_tasks: a carry passes from task to task, so it cannot be used with a mesh."
            )
        num_tasks, num_shares = leading_size("tasks", tasks, "task"), mesh.shape[TASKS]
        if num_shares == 1:
            return on_one_device(shared, tasks, carry)
        if num_tasks % num_shares:
            raise ValueError(
                f"{num_tasks} tasks cannot be shared equally by the {num_shares} devices of the "
                f"mesh: make their number a multiple of {num_shares}."
            )

        def on_each(shared: PyTree, tasks: PyTree) -> PyTree:
            result, _ = on_one_device(shared, tasks, ())
            if stack:
                return result
            # One vector would gather what is sharded over the other axes.
            mean = _mean_of_vector if mesh.size == num_shares else _mean_of_leaves
            return mean(result)

        # With the check, loss functions would have to declare which values in their scans vary over
        # devices. It is not needed: derivatives are taken inside, and no collective is in them.
        across = jax.shard_map(
            on_each,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(TASKS)),
            out_specs=PartitionSpec(TASKS) if stack else PartitionSpec(),
            axis_names={TASKS},
            check_vma=False,
        )
        return across(shared, tasks), ()

    return mapped


def default_chunk(shared: PyTree, tasks: PyTree, mesh: Mesh | None = None) -> int:
    """The default number of tasks per `vmap`.

    An accelerator takes all tasks of a device at once. A CPU takes at most `CPU_CHUNK_TASKS`, and
    fewer if the parameters and data of the chunk would exceed `CPU_CHUNK_BYTES`. Batching reduces
    the number of operations, which limits the speed of small tasks. Large tasks are limited by the
    cache, which a smaller chunk fits.
    """
    num_tasks = _num_tasks(tasks)
    platform = mesh.devices.flat[0].platform if mesh is not None else jax.default_backend()
    if platform != "cpu":
        return num_tasks
    bytes_per_task = _num_bytes(shared) + _num_bytes(tasks) / num_tasks
    limit = min(CPU_CHUNK_TASKS, int(CPU_CHUNK_BYTES // max(bytes_per_task, 1)))
    return equal_chunk(num_tasks, limit)


def check_mesh(what: str, mesh: Any) -> None:
    """Raises `ValueError` unless `mesh` is a mesh with an axis for tasks, or `None`."""
    if mesh is None:
        return
    if not isinstance(mesh, Mesh):
        name = type(mesh).__name__
        raise ValueError(
            f"{what} must be a jax.sharding.Mesh such as metajax.task_mesh(), got {name}."
        )
    if TASKS not in mesh.axis_names:
        raise ValueError(
            f"{what} must have an axis {TASKS!r}, which the tasks are shared over, but has "
            f"{', '.join(map(repr, mesh.axis_names))}: rename one of them."
        )


def map_tasks(fn: Callable[..., PyTree], *tasks: PyTree) -> PyTree:
    """`jax.vmap(fn)(*tasks)`, or a plain call for a single task."""
    if _num_tasks(tasks) > 1:
        return jax.vmap(fn)(*tasks)
    # Without a batch axis XLA may transpose the matrix products of weight gradients.
    result = fn(*jax.tree.map(lambda x: x[0], tasks))
    return jax.tree.map(lambda x: jnp.expand_dims(x, 0), result)


def _mean_of_vector(tree: PyTree) -> PyTree:
    """Averages all floating-point leaves over devices, as one vector in one all-reduce.

    Other leaves are those of the first device.
    """
    leaves, treedef = jax.tree.flatten(tree)
    flat, unravel = ravel_pytree(inexact_leaves(leaves))
    means = unravel(jax.lax.pmean(flat, TASKS))
    return jax.tree.unflatten(
        treedef, [means[i] if i in means else _of_first(leaf) for i, leaf in enumerate(leaves)]
    )


def _mean_of_leaves(tree: PyTree) -> PyTree:
    """Averages every floating-point leaf over devices, sharded as it is."""
    return jax.tree.map(
        lambda x: jax.lax.pmean(x, TASKS) if jnp.issubdtype(x.dtype, jnp.inexact) else _of_first(x),
        tree,
    )


def _of_first(x: Array) -> Array:
    """Integers, booleans or keys of the first device."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = _of_first(jax.random.key_data(x))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    own = jnp.where(jax.lax.axis_index(TASKS) == 0, x, jnp.zeros_like(x))
    return jax.lax.psum(own, TASKS).astype(x.dtype)


def _num_tasks(tasks: PyTree) -> int:
    return jax.tree.leaves(tasks)[0].shape[0]


def _num_bytes(tree: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
