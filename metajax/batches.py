"""What each inner step sees of the support."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from metajax.base import Array, Batch, Key, check_integer

BatchAt = Callable[[Array], Batch]
Batches = Callable[[Batch, int, Key], BatchAt]
"""`(support, num_steps, rng) -> (step -> batch)`: prepared once per task, read at every step."""


@functools.cache
def full_batch() -> Batches:
    """Every inner step sees the whole support."""

    def batches(support: Batch, num_steps: int, rng: Key) -> BatchAt:
        return lambda step: support

    return batches


def cycle(batch_size: int) -> Batches:
    """Shuffles the support and cycles through it; a batch may straddle two epochs.

    Every example is seen once before any is seen again.

    Args:
      batch_size: examples per inner step, at most the size of the support.

    Raises:
      ValueError: if `batch_size` is not a positive integer or, when traced, exceeds the support.

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
        epochs = -(-num_steps * batch_size // size)
        order = jax.vmap(lambda key: jax.random.permutation(key, size))(
            jax.random.split(rng, max(epochs, 1))
        ).reshape(-1)

        def at(step):
            rows = jax.lax.dynamic_slice_in_dim(order, step * batch_size, batch_size)
            return jax.tree.map(lambda x: x[rows], support)

        return at

    return batches


def replacement(batch_size: int) -> Batches:
    """Draws every inner step's batch anew: no example twice in a batch, any example in the next.

    Args:
      batch_size: examples per inner step, at most the size of the support.

    Raises:
      ValueError: if `batch_size` is not a positive integer or, when traced, exceeds the support.

    References:
      Nichol et al., `On First-Order Meta-Learning Algorithms
      <https://arxiv.org/abs/1803.02999>`_, 2018, section 6.3, figure 4.
    """
    batch_size = check_integer("replacement: batch_size", batch_size)

    def batches(support: Batch, num_steps: int, rng: Key) -> BatchAt:
        size = _support_size("replacement", support, batch_size)

        def at(step):
            rows = jax.random.permutation(jax.random.fold_in(rng, step), size)[:batch_size]
            return jax.tree.map(lambda x: x[rows], support)

        return at

    return batches


def per_step() -> Batches:
    """The support's leading axis is the inner step: leaves `[num_steps, shots, ...]`.

    Raises:
      ValueError: when traced with a leading axis that is not `num_steps`.
    """

    def batches(support: Batch, num_steps: int, rng: Key) -> BatchAt:
        for path, leaf in jax.tree_util.tree_leaves_with_path(support):
            if not jnp.ndim(leaf) or leaf.shape[0] != num_steps:
                raise ValueError(
                    f"per_step: support{jax.tree_util.keystr(path)} has shape {jnp.shape(leaf)}, "
                    f"but its leading axis must be the {num_steps} inner steps."
                )
        return lambda step: jax.tree.map(lambda x: x[step], support)

    return batches


def _support_size(name: str, support: Batch, batch_size: int) -> int:
    leaves = jax.tree_util.tree_leaves_with_path(support)
    if not leaves:
        raise ValueError(f"{name}: the support has no arrays to draw batches from.")
    for key_path, leaf in leaves:
        if not jnp.ndim(leaf):
            raise ValueError(
                f"{name}: support{jax.tree_util.keystr(key_path)} is a scalar; every array of the "
                "support needs the examples on its leading axis."
            )
    sizes = {jax.tree_util.keystr(path): leaf.shape[0] for path, leaf in leaves}
    (first, size), *_ = sizes.items()
    for path, other in sizes.items():
        if other != size:
            raise ValueError(
                f"{name}: support{first} has {size} examples on its leading axis, support{path} "
                f"has {other}; every array of the support needs the same number."
            )
    if batch_size > size:
        raise ValueError(
            f"{name}: batch_size={batch_size} exceeds the {size} examples of the support; lower "
            "it, or give each task more shots."
        )
    return size
