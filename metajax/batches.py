"""The batches that the inner steps take from the support.

A support with padded examples is `(x, y, mask)` or a dict with a `"mask"`, which is boolean
`[examples]` and false for padding. An entry of that name with another shape or type is data like
any other. `cycle` and `replacement` draw no padding; `full_batch` keeps the padding and its mask.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax.base import Array, Batch, Key, check_integer, leading_size, named_leaves

BatchAt = Callable[[Array], Batch]
Batches = Callable[[Batch, int, Key], BatchAt]
"""`(support, num_steps, rng) -> (step -> batch)`: set up once per task, called at every step."""


@functools.cache
def full_batch() -> Batches:
    """Every inner step takes the whole support.

    Example:

    >>> import jax, jax.numpy as jnp, metajax
    >>> batch_at = metajax.full_batch()(jnp.arange(4), 2, jax.random.key(0))
    >>> batch_at(1).shape
    (4,)
    """

    def batches(support: Batch, num_steps: int, rng: Key) -> BatchAt:
        return lambda step: support

    return batches


def cycle(batch_size: int) -> Batches:
    """Shuffles the support and goes through it again and again, in a new order each time.

    Every example is used once before any is used again. A batch may straddle two epochs.

    Args:
      batch_size: examples per inner step, at most the size of the support.

    Raises:
      ValueError: if `batch_size` is not a positive integer; when traced, if it exceeds the number
        of examples or the arrays of the support disagree on that number.

    Example:

    >>> import jax, jax.numpy as jnp, metajax
    >>> batch_at = metajax.cycle(2)(jnp.arange(4), 4, jax.random.key(0))
    >>> sorted(int(i) for step in range(2) for i in batch_at(step))
    [0, 1, 2, 3]

    References:
      Nichol et al., `On First-Order Meta-Learning Algorithms
      <https://arxiv.org/abs/1803.02999>`_, 2018, section 6.3 and the authors' sampler.
    """
    batch_size = check_integer("cycle: batch_size", batch_size)

    def batches(support: Batch, num_steps: int, rng: Key) -> BatchAt:
        size = _support_size("cycle", support, batch_size)
        if (mask := find_mask(support)) is not None:
            num = jnp.maximum(jnp.sum(mask), 1)

            def masked_at(step):
                draws = step * batch_size + jnp.arange(batch_size)
                orders = jax.vmap(lambda epoch: _valid_first(jax.random.fold_in(rng, epoch), mask))
                return _rows(support, orders(draws // num)[jnp.arange(batch_size), draws % num])

            return masked_at
        epochs = -(-num_steps * batch_size // size)
        order = jax.vmap(lambda key: jax.random.permutation(key, size))(
            jax.random.split(rng, max(epochs, 1))
        ).reshape(-1)

        def at(step):
            rows = jax.lax.dynamic_slice_in_dim(order, step * batch_size, batch_size)
            return _rows(support, rows)

        return at

    return batches


def replacement(batch_size: int) -> Batches:
    """Draws a new batch for every inner step, independently of the batches before.

    The examples within a batch differ.

    Args:
      batch_size: examples per inner step, at most the size of the support. Where padding leaves
        fewer examples than that, a batch repeats some of them.

    Raises:
      ValueError: if `batch_size` is not a positive integer; when traced, if it exceeds the number
        of examples or the arrays of the support disagree on that number.

    Example:

    >>> import jax, jax.numpy as jnp, metajax
    >>> batch_at = metajax.replacement(3)(jnp.arange(4), 2, jax.random.key(0))
    >>> len(set(batch_at(0).tolist()))
    3

    References:
      Nichol et al., `On First-Order Meta-Learning Algorithms
      <https://arxiv.org/abs/1803.02999>`_, 2018, section 6.3, figure 4.
    """
    batch_size = check_integer("replacement: batch_size", batch_size)

    def batches(support: Batch, num_steps: int, rng: Key) -> BatchAt:
        size, mask = _support_size("replacement", support, batch_size), find_mask(support)

        def at(step):
            key = jax.random.fold_in(rng, step)
            if mask is None:
                return _rows(support, jax.random.permutation(key, size)[:batch_size])
            places = jnp.arange(batch_size) % jnp.maximum(jnp.sum(mask), 1)
            return _rows(support, _valid_first(key, mask)[places])

        return at

    return batches


def per_step() -> Batches:
    """Every inner step takes its own part of a support with leaves `[num_steps, shots, ...]`.

    Raises:
      ValueError: when traced, if a leading axis is not `num_steps` long.

    Example:

    >>> import jax, jax.numpy as jnp, metajax
    >>> batch_at = metajax.per_step()(jnp.ones((2, 5)), 2, jax.random.key(0))
    >>> batch_at(1).shape
    (5,)
    """

    def batches(support: Batch, num_steps: int, rng: Key) -> BatchAt:
        for name, leaf in named_leaves(support, "support").items():
            if jnp.shape(leaf)[:1] != (num_steps,):
                raise ValueError(
                    f"per_step: {name} has shape {jnp.shape(leaf)}, but its leading axis must be "
                    f"the {num_steps} inner steps."
                )
        return lambda step: jax.tree.map(lambda x: x[step], support)

    return batches


def find_mask(batch: Batch) -> Array | None:
    """The mask of a batch with padded examples, or `None`."""
    mask: Any = batch.get("mask") if isinstance(batch, dict) else None
    if isinstance(batch, tuple | list) and len(batch) == 3:
        mask = batch[2]
    if hasattr(mask, "dtype") and mask.ndim == 1 and mask.dtype == bool:
        return jnp.asarray(mask)
    return None


def _valid_first(rng: Key, mask: Array) -> Array:
    """The indices of the examples in random order, padding last."""
    return jnp.argsort(jnp.where(mask, jax.random.uniform(rng, mask.shape), jnp.inf))


def _rows(support: Batch, rows: Array) -> Batch:
    return jax.tree.map(lambda x: x[rows], support)


def _support_size(name: str, support: Batch, batch_size: int) -> int:
    size = leading_size("support", support, "example")
    if batch_size > size:
        raise ValueError(
            f"{name}: batch_size={batch_size} exceeds the {size} examples of the support; lower "
            "it, or give each task more shots."
        )
    return size
