"""N-way K-shot classification, sampled on the device from an array of images."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.base import Array, Episode, Key, check_integer, split_key
from metajax.tasks.sources import ImageClasses as ImageClasses
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
      images: uint8 `[classes, examples, height, width, channels]`, the only leaf of the pytree.
        An array of NumPy is put on the default device, once.
      ways: classes per task, `N`.
      shots: support images per class, `K`.
      queries: query images per class; 0 for algorithms that look at the support only.
      rotate: turn each class of each task by a random multiple of 90 degrees, the same for all of
        its images (Santoro et al. 2016, section 4.1).

    Raises:
      ValueError: `images` has another type or rank, holds too few classes or too few examples for
        a task, or is not square and `rotate` is set; `ways` or `shots` is no positive integer, or
        `queries` no non-negative one.

    Example:
      >>> import jax, numpy as np
      >>> tasks = FewShot(np.zeros((64, 20, 28, 28, 1), np.uint8), ways=5, shots=1, queries=15)
      >>> support, query = tasks.sample(jax.random.key(0))
      >>> query[0].shape, query[1].shape
      ((75, 28, 28, 1), (75,))

    References:
      Vinyals et al., Matching Networks for One Shot Learning, 2016, section 4.1.
    """

    images: Array | np.ndarray
    _: dataclasses.KW_ONLY
    ways: int
    shots: int
    queries: int
    rotate: bool = False

    def __post_init__(self) -> None:
        check_integer("ways", self.ways)
        check_integer("shots", self.shots)
        check_integer("queries", self.queries, minimum=0)
        self._check_images()
        if isinstance(self.images, np.ndarray):
            object.__setattr__(self, "images", jnp.asarray(self.images))

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """The images, and the settings, which are static."""
        settings = (self.ways, self.shots, self.queries, self.rotate)
        return ((jax.tree_util.GetAttrKey("images"), self.images),), settings

    @classmethod
    def tree_unflatten(cls, settings: Any, leaves: Any) -> FewShot:
        """Checks nothing: JAX puts tracers, stacks and placeholders in the images' place."""
        tasks = object.__new__(cls)
        names = ("images", "ways", "shots", "queries", "rotate")
        tasks.__dict__.update(zip(names, (*leaves, *settings), strict=True))
        return tasks

    def _check_images(self) -> None:
        dtype = getattr(self.images, "dtype", type(self.images).__name__)
        if dtype != jnp.uint8:
            raise ValueError(
                f"images must be uint8 in 0..255, got {dtype}: they are kept small on the device "
                f"and scaled to [0, 1] when sampled; undo a scaling, then use "
                f"np.asarray(images, np.uint8)"
            )
        shape = self.images.shape
        if len(shape) != 5:
            raise ValueError(
                f"images must be [classes, examples, height, width, channels], got shape {shape}; "
                f"grey images need a channel axis of size 1"
            )
        classes, examples, height, width, _ = shape
        if self.ways > classes:
            raise ValueError(
                f"a task of ways={self.ways} different classes cannot be drawn from {classes} "
                f"classes; lower ways or pass more classes"
            )
        if self.shots + self.queries > examples:
            raise ValueError(
                f"support and query share no image, so shots + queries = "
                f"{self.shots} + {self.queries} must not exceed the {examples} examples of a "
                f"class; lower either"
            )
        if self.rotate and height != width:
            raise ValueError(
                f"rotate=True needs square images, got {height} x {width}; crop them or set "
                f"rotate=False"
            )

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
        self._check_images()  # JAX may have rebuilt the tasks with others
        class_rng, example_rng, rotation_rng = split_key(rng, 3)
        num_classes, num_examples = self.images.shape[:2]
        return Draw(
            _distinct(class_rng, (num_classes,), self.ways),
            _distinct(example_rng, (self.ways, num_examples), self.shots + self.queries),
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


def _distinct(rng: Key, shape: tuple[int, ...], num: int) -> Array:
    """Draws `num` different indices into the last axis of `shape`, in random order."""
    # The places of the largest of random numbers. XLA has a fast path for the top of float32,
    # where integers, and the sort behind `jax.random.choice`, are many times slower.
    return jax.lax.top_k(jax.random.uniform(rng, shape, jnp.float32), num)[1]


def _rotate(images: Array, quarter_turns: Array) -> Array:
    """Turns images `[n, size, size, channels]` by `quarter_turns` times 90 degrees."""
    turns = [functools.partial(jnp.rot90, k=k, axes=(1, 2)) for k in range(4)]
    return jax.lax.switch(quarter_turns, turns, images)
