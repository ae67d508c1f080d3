"""Old names in `metajax.tasks` of functions that are now in `metajax.data`, kept for one release.

The modules `audit`, `cifar`, `mini_imagenet`, `omniglot` and `sources` will go with this one.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from metajax.data.images import Images, Splits


def moved(old: str, new: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function under its old name, which warns and names the new one."""

    @functools.wraps(function)
    def deprecated(*args: Any, **kwargs: Any) -> Any:
        warnings.warn(
            f"{old} is deprecated and goes with the next release: use {new}",
            DeprecationWarning,
            stacklevel=2,
        )
        return function(*args, **kwargs)

    deprecated.__doc__ = f"Deprecated: `{new}`."
    return deprecated


class NamedSplits(NamedTuple):
    """Deprecated: `metajax.data.Splits`."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    train_names: tuple[str, ...]
    validation_names: tuple[str, ...]
    test_names: tuple[str, ...]


def named_splits(name: str, load: Callable[..., Splits]) -> Callable[..., Any]:
    """The old function `load` of the module `name`, which returned arrays and names."""

    def old(*args: Any, **kwargs: Any) -> NamedSplits:
        splits = load(*args, **kwargs)
        train, validation, test = splits
        arrays = train.images, validation.images, test.images
        return NamedSplits(*arrays, train.names, validation.names, test.names)

    return moved(f"metajax.tasks.{name}.load", f"metajax.data.{name}.load", old)


class ImageClasses(NamedTuple):
    """Deprecated: `metajax.data.Images`."""

    images: np.ndarray
    names: tuple[str, ...]

    def split(self, *sizes: int, seed: int = 0) -> tuple[ImageClasses, ...]:
        """Deprecated: `metajax.data.Images.split`."""
        parts = Images(*self).split(*sizes, seed=seed)
        return tuple(ImageClasses(part.array, part.names) for part in parts)


def image_classes(name: str, read: Callable[..., Images]) -> Callable[..., Any]:
    """The old reader `name`, which returned an array and names and took classes of one size."""

    def old(*args: Any, **kwargs: Any) -> ImageClasses:
        found = read(*args, **kwargs)
        return ImageClasses(found.images, found.names)

    return moved(f"metajax.tasks.few_shot.{name}", f"metajax.data.{name}", old)
