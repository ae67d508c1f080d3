"""A folder of class folders as three sets of classes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from metajax.data.images import Splits
from metajax.data.sources import from_folder

PARTS = ("train", "validation", "test")
# The shares of meta-training and meta-validation, as in Mini-ImageNet; the rest is for testing.
SHARES = (0.64, 0.16)


def load(
    data_dir: str | os.PathLike[str] | None = None, *, size: int = 84, grey: bool = False
) -> Splits:
    """Reads a folder of class folders and splits its classes.

    If the folder holds `train`, `validation` and `test`, these hold the class folders of each set.
    Otherwise the classes are ordered by the SHA-256 of their names. The first 64 % are for
    meta-training, the next 16 % for meta-validation, the rest for testing, and each set has at
    least one class. So the split is the same on every machine.

    Args:
      data_dir: the folder.
      size: height and width in pixels, see `from_folder`.
      grey: one channel of brightness rather than three of colour.

    Returns:
      Three sets of classes, which may differ in size.

    Raises:
      FileNotFoundError: there is no such folder, or none in it that holds images.
      ImportError: Pillow is not installed.
      ValueError: no folder is given, there are fewer than three classes, or an image cannot be
        read.

    Example:
      >>> from metajax import data
      >>> splits = data.load("folder", "flowers", size=32)  # doctest: +SKIP
    """
    if data_dir is None:
        raise ValueError("name the folder of your images: data_dir=FOLDER")
    root = Path(data_dir).expanduser()
    if all((root / part).is_dir() for part in PARTS):
        return Splits(*(from_folder(root / part, size=size, grey=grey) for part in PARTS))
    images = from_folder(root, size=size, grey=grey)
    if len(images) < len(PARTS):
        raise ValueError(f"{root} has {len(images)} classes, but three sets need at least three")
    order = sorted(
        range(len(images)), key=lambda i: hashlib.sha256(images.names[i].encode()).digest()
    )
    first = min(max(round(SHARES[0] * len(order)), 1), len(order) - 2)
    second = min(max(round(SHARES[1] * len(order)), 1), len(order) - first - 1)
    parts = np.split(np.array(order), [first, first + second])
    return Splits(*(images._rows(part) for part in parts))
