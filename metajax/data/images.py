"""Images by class, and three sets of classes: what every reader returns."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from metajax.base import check_integer


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Images:
    """Images by class. Classes may have different numbers of examples.

    All images are in one array. Its second axis is as long as the largest class; the rows of
    smaller classes end in padding, which no sampler draws. Methods change nothing in place.

    Attributes:
      array: uint8 `[classes, examples, height, width, channels]`.
      names: the name of each class, all different.
      counts: int32 `[classes]`, the number of examples of each class, which come first in its row;
        by default all `examples`.

    Raises:
      ValueError: `array` has another type or rank; `names` are no strings, not as many as the
        classes, or one occurs twice; `counts` do not fit the array.

    Example:
      >>> import numpy as np
      >>> images = Images(np.zeros((3, 20, 28, 28, 1), np.uint8), ("alpha", "beta", "gamma"))
      >>> images
      Images(3 classes, 20 examples each, 28 x 28 x 1)
      >>> train, test = images.split(2, 1)
      >>> len(train), len(train.with_quarter_turns())
      (2, 8)
    """

    array: np.ndarray
    names: tuple[str, ...]
    counts: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        array = self.array if isinstance(self.array, np.ndarray) else np.asarray(self.array)
        if array.dtype != np.uint8 or array.ndim != 5:
            raise ValueError(
                f"the array of Images must be uint8 [classes, examples, height, width, channels], "
                f"got {array.dtype} {array.shape}"
            )
        names = _checked_names(self.names, len(array))
        counts = _checked_counts(self.counts, array, names)
        for field, value in (("array", array), ("names", names), ("counts", counts)):
            object.__setattr__(self, field, value)

    @classmethod
    def from_classes(cls, classes: Mapping[str, Any]) -> Images:
        """Puts together classes of any sizes.

        Args:
          classes: by name, the examples: uint8 `[examples, height, width, channels]` each, of one
            height, width and number of channels.

        Raises:
          ValueError: there are no classes, or their images have different shapes or another type.

        Example:
          >>> import numpy as np
          >>> small, large = (np.zeros((n, 8, 8, 3), np.uint8) for n in (2, 5))
          >>> Images.from_classes({"cat": small, "dog": large})
          Images(2 classes, 2 to 5 examples, 8 x 8 x 3)
        """
        arrays = {name: np.asarray(examples) for name, examples in classes.items()}
        if not arrays:
            raise ValueError("there are no images")
        kinds = {name: (str(a.dtype), a.shape[1:]) for name, a in arrays.items()}
        first, kind = next(iter(kinds.items()))
        for name, other in kinds.items():
            if other != kind or len(kind[1]) != 3 or kind[0] != "uint8":
                raise ValueError(
                    f"classes must be uint8 [examples, height, width, channels] of one image size, "
                    f"got {kind[0]} [examples, {str(kind[1])[1:-1]}] for {first!r} and {other[0]} "
                    f"[examples, {str(other[1])[1:-1]}] for {name!r}"
                )
        counts = [len(examples) for examples in arrays.values()]
        array = np.zeros((len(arrays), max(counts), *kind[1]), np.uint8)
        for row, examples in zip(array, arrays.values(), strict=True):
            row[: len(examples)] = examples
        return cls(array, tuple(arrays), np.asarray(counts))

    def __len__(self) -> int:
        """The number of classes."""
        return len(self.names)

    def __repr__(self) -> str:
        fewest, most = (int(f(self.counts)) if len(self) else 0 for f in (np.min, np.max))
        examples = f"{most} examples each" if fewest == most else f"{fewest} to {most} examples"
        size = " x ".join(map(str, self.image_shape))
        return f"Images({len(self)} classes, {examples}, {size})"

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width and channels of an image."""
        return self.array.shape[2:]

    @property
    def equal(self) -> bool:
        """Whether all classes have as many examples as the array has room for."""
        return bool((self.counts == self.array.shape[1]).all())

    @property
    def images(self) -> np.ndarray:
        """The array of classes of one size.

        Raises:
          ValueError: classes differ in size, so that the array has padding.
        """
        if not self.equal:
            fewest = int(self.counts.min())
            raise ValueError(
                f"the classes have from {fewest} ({self.names[int(self.counts.argmin())]!r}) to "
                f"{self.counts.max()} images, so their array has padding: pass the Images "
                f"themselves to FewShot, or examples_per_class={fewest} to the reader"
            )
        return self.array

    def classes(self) -> list[np.ndarray]:
        """The examples of each class, uint8 `[examples, height, width, channels]`, no padding."""
        return [row[:count] for row, count in zip(self.array, self.counts, strict=True)]

    def split(self, *sizes: int, seed: int = 0) -> tuple[Images, ...]:
        """Deals the classes out at random, for meta-training, meta-validation and meta-test.

        Args:
          *sizes: positive integers, classes in each part; all of them together.
          seed: decides which class goes where.

        Raises:
          ValueError: the sizes do not add up to the number of classes, or one is not positive.

        Example:
          >>> import numpy as np
          >>> from metajax import data
          >>> images = data.from_arrays(np.zeros((60, 8, 8), np.uint8), np.arange(60) % 10)
          >>> train, validation, test = images.split(5, 2, 3)
          >>> data.Splits(train, validation, test).test
          Images(3 classes, 6 examples each, 8 x 8 x 1)
        """
        what = "split takes the sizes one by one, and each"
        sizes = tuple(check_integer(what, size) for size in sizes)
        if sum(sizes) != len(self):
            raise ValueError(
                f"the sizes must add up to the {len(self)} classes, got "
                f"{' + '.join(map(str, sizes))} = {sum(sizes)}"
            )
        order = np.random.default_rng(seed).permutation(len(self))
        return tuple(self._rows(part) for part in np.split(order, np.cumsum(sizes)[:-1]))

    def with_at_least(self, examples: int) -> Images:
        """Leaves out the classes that have fewer examples.

        Args:
          examples: a positive integer, such as the shots and queries of a task together.

        Example:
          >>> import numpy as np
          >>> small, large = (np.zeros((n, 8, 8, 3), np.uint8) for n in (2, 5))
          >>> Images.from_classes({"cat": small, "dog": large}).with_at_least(3).names
          ('dog',)
        """
        return self._rows(np.flatnonzero(self.counts >= check_integer("examples", examples)))

    def inverted(self) -> Images:
        """Makes dark what is bright: 255 minus every pixel.

        Example:
          >>> import numpy as np
          >>> int(Images(np.full((1, 1, 1, 1, 1), 3, np.uint8), ("a",)).inverted().array.item())
          252
        """
        return dataclasses.replace(self, array=255 - self.array)

    def with_quarter_turns(self) -> Images:
        """Adds every class turned by 90, 180 and 270 degrees as a class of its own.

        All classes come first as they are, then all turned by 90 degrees counterclockwise, and so
        on. Their names say so: `"NAME turned by 0"`, `"NAME turned by 90"`.

        Raises:
          ValueError: the images are not square.

        Example:
          >>> import numpy as np
          >>> Images(np.zeros((1, 4, 8, 8, 1), np.uint8), ("a",)).with_quarter_turns().names
          ('a turned by 0', 'a turned by 90', 'a turned by 180', 'a turned by 270')

        References:
          Santoro et al., Meta-Learning with Memory-Augmented Neural Networks, 2016, section 4.1.
        """
        height, width, _ = self.image_shape
        if height != width:
            raise ValueError(f"quarter turns need square images, got {height} x {width}; crop them")
        turned = [np.rot90(self.array, turns, axes=(2, 3)) for turns in range(4)]
        names = [f"{name} turned by {90 * turns}" for turns in range(4) for name in self.names]
        return Images(np.concatenate(turned), tuple(names), np.tile(self.counts, 4))

    def joined(self, other: Images) -> Images:
        """Puts the classes of another set behind these.

        Raises:
          ValueError: the images differ in shape, or the sets share the name of a class.

        Example:
          >>> import numpy as np
          >>> one, other = (Images(np.zeros((1, n, 8, 8, 1), np.uint8), (str(n),)) for n in (4, 6))
          >>> one.joined(other)
          Images(2 classes, 4 to 6 examples, 8 x 8 x 1)
        """
        if self.image_shape != other.image_shape:
            raise ValueError(
                f"only images of one shape can be joined, got {self.image_shape} and "
                f"{other.image_shape}"
            )
        most = max(self.array.shape[1], other.array.shape[1])
        arrays = [_padded(images.array, most) for images in (self, other)]
        counts = np.concatenate([self.counts, other.counts])
        return Images(np.concatenate(arrays), self.names + other.names, counts)

    def _rows(self, rows: Any) -> Images:
        names = tuple(self.names[row] for row in rows)
        return Images(self.array[rows], names, self.counts[rows])


class Splits(NamedTuple):
    """A data set in three sets of classes, which should share none; see `audit`.

    Attributes:
      train: the classes of meta-training.
      validation: the classes of meta-validation; there may be none.
      test: the classes of meta-test.

    Example:
      >>> import numpy as np
      >>> images = Images(np.zeros((4, 20, 28, 28, 1), np.uint8), ("a", "b", "c", "d"))
      >>> splits = Splits(*images.split(2, 1, 1))
      >>> splits.inverted().merged().train
      Images(3 classes, 20 examples each, 28 x 28 x 1)
    """

    train: Images
    validation: Images
    test: Images

    def inverted(self) -> Splits:
        """Makes dark what is bright in all three sets; see `Images.inverted`."""
        return Splits(*(images.inverted() for images in self))

    def merged(self) -> Splits:
        """Moves the validation classes to the end of the training classes.

        Validation is left without classes: a protocol that trains on all of them tests its last
        state.

        Raises:
          ValueError: as `Images.joined`.
        """
        return Splits(self.train.joined(self.validation), self.validation._rows([]), self.test)

    def with_quarter_turns(self) -> Splits:
        """Adds quarter turns to the training classes only; see `Images.with_quarter_turns`."""
        return self._replace(train=self.train.with_quarter_turns())


def _checked_names(names: Any, num: int) -> tuple[str, ...]:
    try:
        names = tuple(names)
    except TypeError:
        raise ValueError(f"the class names must be a tuple of strings, got {names!r}") from None
    if not all(isinstance(name, str) for name in names):
        raise ValueError("the class names must be strings; use map(str, names)")
    if len(names) != num:
        raise ValueError(f"each class needs one name, got {len(names)} names for {num} classes")
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"each class needs a name of its own, but {twice[0]!r} occurs twice")
    return names


def _checked_counts(counts: Any, array: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    most = array.shape[1]
    counts = np.full(len(array), most) if counts is None else np.asarray(counts)
    if counts.dtype.kind not in "iu" or counts.shape != array.shape[:1]:
        raise ValueError(
            f"counts must be integers [classes], one for each of the {len(array)} classes, got "
            f"{counts.dtype} {counts.shape}"
        )
    wrong = np.flatnonzero((counts < 1) | (counts > most))
    if len(wrong):
        raise ValueError(
            f"a class must have from 1 to {most} examples, the length of the array, got "
            f"{counts[wrong[0]]} of {names[wrong[0]]!r}"
        )
    return counts.astype(np.int32)


def _padded(array: np.ndarray, examples: int) -> np.ndarray:
    missing = examples - array.shape[1]
    return np.pad(array, [(0, 0), (0, missing), *[(0, 0)] * 3]) if missing else array
