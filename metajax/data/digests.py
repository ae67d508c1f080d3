"""Digests of images, by which the audits find copies of images and turned copies of classes."""

from __future__ import annotations

import collections
import concurrent.futures
import hashlib
import itertools
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from metajax.data.images import Images

Place = tuple[str, int, int]  # split, class, example


def digests(images: Images | Iterable[np.ndarray], *, turned: bool = False) -> list[list[bytes]]:
    """A digest of every image, by class.

    Args:
      images: or the examples of each class, `[examples, height, width, channels]`.
      turned: whether all quarter turns of an image have the same digest.
    """

    def class_digests(examples: np.ndarray) -> list[bytes]:
        examples = np.ascontiguousarray(examples)
        found = [digest(example) for example in examples]
        if turned:
            for k in (1, 2, 3):
                turned_by_k = np.ascontiguousarray(np.rot90(examples, k, axes=(1, 2)))
                found = [*map(min, found, map(digest, turned_by_k))]
        return found

    # Hashing releases the lock of the interpreter for all but small images.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(
            pool.map(class_digests, images.classes() if isinstance(images, Images) else images)
        )


def digest(content: Any) -> bytes:
    """The SHA-256 of bytes or of a contiguous array."""
    return hashlib.sha256(content).digest()


def groups(found: Mapping[str, list[list[bytes]]]) -> list[list[Place]]:
    """The places of each digest that occurs more than once, in the order of the first ones."""
    places: dict[bytes, list[Place]] = collections.defaultdict(list)
    for split, classes in found.items():
        for row, images in enumerate(classes):
            for column, image in enumerate(images):
                places[image].append((split, row, column))
    return [group for group in places.values() if len(group) > 1]


def alike(
    groups: Iterable[list[Place]], counts: Mapping[str, Any]
) -> list[tuple[tuple[str, int], tuple[str, int]]]:
    """The pairs of different classes that have more than half of their images in common.

    Args:
      groups: the places that have the same image.
      counts: by split, the number of examples of each class. Of two classes the smaller counts.
    """
    common: collections.Counter = collections.Counter()
    for places in groups:
        # A class counts once, however often it has the image.
        classes = dict.fromkeys((split, row) for split, row, _ in places)
        common.update(itertools.combinations(classes, 2))
    return [
        pair
        for pair, count in common.items()
        if 2 * count > min(counts[split][row] for split, row in pair)
    ]
