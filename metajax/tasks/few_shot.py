"""N-way K-shot classification, sampled on the device from images by class."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.base import Array, Episode, Key, check_integer, split_key
from metajax.data.images import Images
from metajax.tasks.sources import ImageClasses as ImageClasses  # deprecated, as the next three
from metajax.tasks.sources import from_arrays as from_arrays
from metajax.tasks.sources import from_folder as from_folder
from metajax.tasks.sources import from_tfds as from_tfds


class Draw(NamedTuple):
    """Which images make up a task.

    Attributes:
      classes: int32 `[ways]`.
      examples: int32 `[ways, shots + queries]`, the support first.
      quarter_turns: int32 `[ways]`, how often each class would be turned by 90 degrees.
    """

    classes: Array
    examples: Array
    quarter_turns: Array


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False)
class FewShot:
    """N-way K-shot classification tasks over a set of classes.

    A task is `ways` different classes and `shots + queries` different images of each. The classes
    come in random order and class `i` of that order has label `i`, so a label means nothing
    outside its task. Only the images of the task are gathered, turned and scaled.

    Attributes:
      images: `metajax.data.Images`, or only their array, uint8 `[classes, examples, height, width,
        channels]`. The attribute is the array. An array of NumPy is put on the default device,
        once.
      ways: classes per task, `N`.
      shots: support images per class, `K`.
      queries: query images per class; 0 for algorithms that look at the support only.
      rotate: turn each class of each task by a random multiple of 90 degrees, the same for all of
        its images (Santoro et al. 2016, section 4.1).
      counts: int32 `[classes]`, the number of examples of each class where classes differ in size,
        taken from `Images`; None where all have `examples`. Examples beyond them are never drawn.
        The leaves of the pytree are `images` and, unless None, `counts`.

    Raises:
      ValueError: `images` has another type or rank, holds too few classes or too few examples for
        a task, or is not square and `rotate` is set; a class has fewer examples than a task needs,
        and the message names it; `ways` or `shots` is no positive integer, or `queries` no
        non-negative one; `counts` are given twice or do not fit.

    Example:
      >>> import jax, numpy as np
      >>> from metajax.data import Images
      >>> names = [f"character {i}" for i in range(64)]
      >>> images = Images(np.zeros((64, 20, 28, 28, 1), np.uint8), names)
      >>> tasks = FewShot(images, ways=5, shots=1, queries=15)
      >>> support, query = tasks.sample(jax.random.key(0))
      >>> query[0].shape, query[1].shape
      ((75, 28, 28, 1), (75,))

    References:
      Vinyals et al., Matching Networks for One Shot Learning, 2016, section 4.1.
    """

    images: Any
    _: dataclasses.KW_ONLY
    ways: int
    shots: int
    queries: int
    rotate: bool = False
    counts: Any = None

    def __post_init__(self) -> None:
        settle(self)
        for name in ("images", "counts"):
            if isinstance(getattr(self, name), np.ndarray):
                object.__setattr__(self, name, jnp.asarray(getattr(self, name)))

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """The images and counts, and the settings, which are static."""
        settings = (self.ways, self.shots, self.queries, self.rotate)
        keys = map(jax.tree_util.GetAttrKey, ("images", "counts"))
        return tuple(zip(keys, (self.images, self.counts), strict=True)), settings

    @classmethod
    def tree_unflatten(cls, settings: Any, leaves: Any) -> FewShot:
        """Checks nothing: JAX puts tracers, stacks and placeholders in the images' place."""
        tasks = object.__new__(cls)
        names = ("images", "counts", "ways", "shots", "queries", "rotate")
        tasks.__dict__.update(zip(names, (*leaves, *settings), strict=True))
        return tasks

    def sample(self, rng: Key) -> Episode:
        """Draws one task.

        Args:
          rng: a key.

        Returns:
          An episode of pairs `(x, y)`: x float32 `[ways * shots, height, width, channels]` in
          [0, 1] and y int32 `[ways * shots]` in the support, `ways * queries` of both in the
          query. The images are grouped by class, labels ascending.
        """
        draw = self.draw(rng)
        return self.episode(self.images[draw.classes[:, None], draw.examples], draw.quarter_turns)

    def draw(self, rng: Key) -> Draw:
        """Draws which images make up a task; reads none of them.

        Args:
          rng: a key.
        """
        _check_images(self, None)  # JAX may have rebuilt the tasks with others
        class_rng, example_rng, rotation_rng = split_key(rng, 3)
        num_classes, num_examples = self.images.shape[:2]
        classes = _distinct(class_rng, (num_classes,), self.ways)
        limits = None if self.counts is None else jnp.asarray(self.counts)[classes]
        return Draw(
            classes,
            _distinct(example_rng, (self.ways, num_examples), self.shots + self.queries, limits),
            jax.random.randint(rotation_rng, (self.ways,), 0, 4).astype(jnp.int32),
        )

    def episode(self, images: Any, quarter_turns: Any) -> Episode:
        """Turns, scales and labels the images of a task.

        Args:
          images: uint8 `[ways, shots + queries, height, width, channels]`.
          quarter_turns: int32 `[ways]`; of no effect without `rotate`.

        Returns:
          What `sample` returns.
        """
        if self.rotate:
            images = jax.vmap(_rotate)(images, quarter_turns)

        def batch(images: Array) -> tuple[Array, Array]:
            x = images.reshape(-1, *images.shape[2:]).astype(jnp.float32) / 255
            return x, jnp.repeat(jnp.arange(self.ways, dtype=jnp.int32), images.shape[1])

        return Episode(batch(images[:, : self.shots]), batch(images[:, self.shots :]))


def settle(tasks: Any) -> None:
    """Checks the settings of new tasks, and puts the array and the counts of `Images` in place."""
    check_integer("ways", tasks.ways)
    check_integer("shots", tasks.shots)
    check_integer("queries", tasks.queries, minimum=0)
    given = tasks.images
    if isinstance(given, Images):
        if tasks.counts is not None:
            raise ValueError("counts are those of the Images; leave them out, or pass an array")
        object.__setattr__(tasks, "images", given.array)
        object.__setattr__(tasks, "counts", None if given.equal else given.counts)
    _check_images(tasks, given.names if isinstance(given, Images) else None)


def _check_images(tasks: Any, names: tuple[str, ...] | None) -> None:
    dtype = getattr(tasks.images, "dtype", type(tasks.images).__name__)
    if dtype != jnp.uint8:
        raise ValueError(
            f"images must be uint8 in 0..255, got {dtype}: they are kept small on the device "
            f"and scaled to [0, 1] when sampled; undo a scaling, then use "
            f"np.asarray(images, np.uint8)"
        )
    shape = tasks.images.shape
    if len(shape) != 5:
        raise ValueError(
            f"images must be [classes, examples, height, width, channels], got shape {shape}; "
            f"grey images need a channel axis of size 1"
        )
    classes, examples, height, width, _ = shape
    if tasks.ways > classes:
        raise ValueError(
            f"a task of ways={tasks.ways} different classes cannot be drawn from {classes} "
            f"classes; lower ways or pass more classes"
        )
    if tasks.counts is not None:
        _check_counts(tasks, names)
    if tasks.shots + tasks.queries > examples:
        raise ValueError(
            f"support and query share no image, so shots + queries = "
            f"{tasks.shots} + {tasks.queries} must not exceed the {examples} examples of a "
            f"class; lower either"
        )
    if tasks.rotate and height != width:
        raise ValueError(
            f"rotate=True needs square images, got {height} x {width}; crop them or set "
            f"rotate=False"
        )


def _check_counts(tasks: Any, names: tuple[str, ...] | None) -> None:
    counts, (classes, examples) = tasks.counts, tasks.images.shape[:2]
    dtype, shape = getattr(counts, "dtype", np.dtype(object)), getattr(counts, "shape", ())
    if not np.issubdtype(dtype, np.integer) or shape != (classes,):
        raise ValueError(
            f"counts must be an array of integers [classes], one for each of the {classes} "
            f"classes, got {dtype} {shape}"
        )
    if isinstance(counts, jax.core.Tracer):
        return
    counts = np.asarray(counts)
    if (counts > examples).any():
        raise ValueError(f"counts must not exceed the {examples} examples of the images' array")
    needed = tasks.shots + tasks.queries
    short = np.flatnonzero(counts < needed)
    if len(short):
        name = repr(names[short[0]]) if names else short[0]
        others = f" (and {len(short) - 1} more)" if len(short) > 1 else ""
        raise ValueError(
            f"a task takes shots + queries = {tasks.shots} + {tasks.queries} different examples of "
            f"a class, but class {name}{others} has {counts[short[0]]}; lower either, or leave "
            f"small classes out by images.with_at_least({needed})"
        )


def _distinct(rng: Key, shape: tuple[int, ...], num: int, limits: Array | None = None) -> Array:
    """Draws `num` different indices into the last axis of `shape`, in random order.

    With `limits`, of the shape of the other axes, the indices are below them.
    """
    # The places of the largest of random numbers. XLA has a fast path for the top of float32,
    # where integers, and the sort behind `jax.random.choice`, are many times slower.
    numbers = jax.random.uniform(rng, shape, jnp.float32)
    if limits is not None:
        index = jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
        # The random numbers are not negative: what is beyond a limit comes last.
        numbers = jnp.where(index < limits[..., None], numbers, -1)
    return jax.lax.top_k(numbers, num)[1]


def _rotate(images: Array, quarter_turns: Array) -> Array:
    """Turns images `[n, size, size, channels]` by `quarter_turns` times 90 degrees."""
    turns = [functools.partial(jnp.rot90, k=k, axes=(1, 2)) for k in range(4)]
    return jax.lax.switch(quarter_turns, turns, images)
