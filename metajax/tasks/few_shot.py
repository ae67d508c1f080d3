"""N-way K-shot classification tasks, sampled on the device from images by class."""

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
    """The indices of the images of a task.

    Attributes:
      classes: the classes, int32 `[ways]`.
      examples: the examples of each class, int32 `[ways, shots + queries]`, the support first.
      quarter_turns: a rotation for each class in units of 90 degrees, int32 `[ways]`.
    """

    classes: Array
    examples: Array
    quarter_turns: Array


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False)
class FewShot:
    """N-way K-shot classification tasks over a set of classes.

    A task has `ways` different classes and `shots + queries` different images of each class. The
    classes are in random order, and class `i` in that order has label `i`, so labels have a meaning
    within their task only. Only the images of the task are gathered, rotated and scaled.

    The class is a pytree, with `images` and `counts` as leaves and static settings.

    Attributes:
      images: `metajax.data.Images`, or only their array, uint8 `[classes, examples, height, width,
        channels]`. The attribute is the array. A NumPy array is moved to the default device.
      ways: classes per task, `N`.
      shots: support images per class, `K`.
      queries: query images per class; 0 for algorithms that use the support only.
      rotate: whether each class of a task is rotated by a random multiple of 90 degrees, the same
        for all of its images (Santoro et al. 2016, section 4.1).
      counts: the number of examples of each class, int32 `[classes]`, if classes differ in size;
        taken from `Images`. `None` if all classes have all examples. Examples beyond the count are
        never drawn.

    Raises:
      ValueError: if `images` have another type or shape, or too few classes or examples for a task
        (the message names a class that is too small); if `rotate` is set for images that are not
        square; if `ways` or `shots` is not a positive integer or `queries` not a non-negative one;
        if `counts` are given twice or do not fit the images.

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
        """The images and counts as leaves, and the static settings."""
        settings = (self.ways, self.shots, self.queries, self.rotate)
        keys = map(jax.tree_util.GetAttrKey, ("images", "counts"))
        return tuple(zip(keys, (self.images, self.counts), strict=True)), settings

    @classmethod
    def tree_unflatten(cls, settings: Any, leaves: Any) -> FewShot:
        """Rebuilds without checks, because JAX replaces the images by tracers and placeholders."""
        tasks = object.__new__(cls)
        names = ("images", "counts", "ways", "shots", "queries", "rotate")
        tasks.__dict__.update(zip(names, (*leaves, *settings), strict=True))
        return tasks

    def sample(self, rng: Key) -> Episode:
        """Draws one task.

        Args:
          rng: a key.

        Returns:
          An episode of pairs `(x, y)`. In the support, x is float32 `[ways * shots, height, width,
          channels]` in [0, 1] and y is int32 `[ways * shots]`; the query has `ways * queries`
          examples. The images are grouped by class, with ascending labels.
        """
        draw = self.draw(rng)
        return self.episode(self.images[draw.classes[:, None], draw.examples], draw.quarter_turns)

    def draw(self, rng: Key) -> Draw:
        """Draws the indices of the images of a task, without reading the images.

        Args:
          rng: a key.
        """
        _check_images(self, None)  # JAX may have rebuilt the tasks with other images
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
        """Rotates, scales and labels the images of a task.

        Args:
          images: uint8 `[ways, shots + queries, height, width, channels]`.
          quarter_turns: int32 `[ways]`; ignored without `rotate`.

        Returns:
          An episode as from `sample`.
        """
        if self.rotate:
            images = jax.vmap(_rotate)(images, quarter_turns)

        def batch(images: Array) -> tuple[Array, Array]:
            x = images.reshape(-1, *images.shape[2:]).astype(jnp.float32) / 255
            return x, jnp.repeat(jnp.arange(self.ways, dtype=jnp.int32), images.shape[1])

        return Episode(batch(images[:, : self.shots]), batch(images[:, self.shots :]))


def settle(tasks: Any) -> None:
    """Checks the settings of new tasks and replaces `Images` by their array and counts."""
    check_integer("ways", tasks.ways)
    check_integer("shots", tasks.shots)
    check_integer("queries", tasks.queries, minimum=0)
    given = tasks.images
    if isinstance(given, Images):
        if tasks.counts is not None:
            raise ValueError("Images have their own counts; leave counts out, or pass an array")
        object.__setattr__(tasks, "images", given.array)
        object.__setattr__(tasks, "counts", None if given.equal else given.counts)
    _check_images(tasks, given.names if isinstance(given, Images) else None)


def _check_images(tasks: Any, names: tuple[str, ...] | None) -> None:
    dtype = getattr(tasks.images, "dtype", type(tasks.images).__name__)
    if dtype != jnp.uint8:
        raise ValueError(
            f"images must be uint8 in 0..255, got {dtype}: they stay small on the device and are "
            f"scaled to [0, 1] when sampled; undo any scaling and use "
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
            f"a task needs shots + queries = {tasks.shots} + {tasks.queries} different examples of "
            f"a class, but class {name}{others} has {counts[short[0]]}; lower either, or remove "
            f"small classes with images.with_at_least({needed})"
        )


def _distinct(rng: Key, shape: tuple[int, ...], num: int, limits: Array | None = None) -> Array:
    """Draws `num` different indices into the last axis of `shape`, in random order.

    Indices are less than `limits`, which has the shape of the other axes.
    """
    # The indices of the largest random numbers. XLA has a fast `top_k` for float32; for integers,
    # and with the sort in `jax.random.choice`, this is many times slower.
    numbers = jax.random.uniform(rng, shape, jnp.float32)
    if limits is not None:
        index = jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
        # The random numbers are non-negative, so indices beyond a limit come last.
        numbers = jnp.where(index < limits[..., None], numbers, -1)
    return jax.lax.top_k(numbers, num)[1]


def _rotate(images: Array, quarter_turns: Array) -> Array:
    """Rotates images `[n, size, size, channels]` by `quarter_turns` times 90 degrees."""
    turns = [functools.partial(jnp.rot90, k=k, axes=(1, 2)) for k in range(4)]
    return jax.lax.switch(quarter_turns, turns, images)
