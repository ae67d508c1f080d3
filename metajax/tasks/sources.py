"""Classes of images from whatever a user has: arrays, folders, TensorFlow Datasets."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metajax.base import check_integer
from metajax.tasks import prepared

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_SHOWN = 5  # how many names of damaged files a message spells out


class ImageClasses(NamedTuple):
    """Classes of images, equally many of each.

    Attributes:
      images: uint8 `[classes, examples, height, width, channels]`, ready for `FewShot`.
      names: the class of each row.
    """

    images: np.ndarray
    names: tuple[str, ...]

    def split(self, *sizes: int, seed: int = 0) -> tuple[ImageClasses, ...]:
        """Deals the classes out at random, for meta-training, meta-validation and meta-test.

        Args:
          *sizes: positive integers, classes in each part; all of them together.
          seed: decides which class goes where.

        Raises:
          ValueError: the sizes do not add up to the number of classes, or one is not positive.

        Example:
          >>> import numpy as np
          >>> from metajax.tasks import few_shot
          >>> data = few_shot.from_arrays(np.zeros((60, 8, 8), np.uint8), np.arange(60) % 10)
          >>> train, test = data.split(7, 3)
          >>> train.images.shape, len(test.names), set(train.names) & set(test.names)
          ((7, 6, 8, 8, 1), 3, set())
        """
        what = "split takes the sizes one by one, and each"
        sizes = tuple(check_integer(what, size) for size in sizes)
        if sum(sizes) != len(self.names):
            raise ValueError(
                f"the sizes must add up to the {len(self.names)} classes, got "
                f"{' + '.join(map(str, sizes))} = {sum(sizes)}"
            )
        order = np.random.default_rng(seed).permutation(len(self.names))
        parts = np.split(order, np.cumsum(sizes)[:-1])
        return tuple(
            ImageClasses(self.images[part], tuple(self.names[row] for row in part))
            for part in parts
        )


def from_arrays(images: Any, labels: Any, *, examples_per_class: int | None = None) -> ImageClasses:
    """Sorts images by their labels.

    Args:
      images: uint8 `[n, height, width]` or `[n, height, width, channels]`.
      labels: `[n]` integers or strings.
      examples_per_class: keep only so many of each class, the first ones. By default all, which
        must then be equally many.

    Returns:
      The classes in ascending order of their labels.

    Raises:
      ValueError: the arrays do not fit together, or a class has too few images; the message names
        the smallest.

    Example:
      >>> import numpy as np
      >>> from metajax.tasks import FewShot, few_shot
      >>> images = np.random.default_rng(0).integers(0, 256, (50, 28, 28), np.uint8)
      >>> labels = np.repeat(["axe", "bow", "cup", "dot", "egg"], [8, 12, 10, 10, 10])
      >>> data = few_shot.from_arrays(images, labels, examples_per_class=8)
      >>> data.images.shape, data.names
      ((5, 8, 28, 28, 1), ('axe', 'bow', 'cup', 'dot', 'egg'))
      >>> tasks = FewShot(data.images, ways=5, shots=1, queries=5)
    """
    images = np.asarray(images)
    labels = np.asarray(np.asarray(labels).tolist())  # strings where pandas holds objects
    if images.dtype != np.uint8:
        raise ValueError(
            f"images must be uint8 in 0..255, got {images.dtype}: they are scaled to [0, 1] when "
            f"sampled; undo a scaling, then use astype('uint8')"
        )
    if images.ndim not in (3, 4):
        raise ValueError(
            f"images must be [n, height, width] or [n, height, width, channels], got shape "
            f"{images.shape}"
        )
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"each image needs one label, got labels of shape {labels.shape} for "
            f"{len(images)} images"
        )
    if labels.dtype.kind not in "iubU" and labels.size:
        raise ValueError(
            f"labels must be integers or strings, got {labels.dtype}; convert them with "
            f"astype(int) or astype(str)"
        )
    if images.ndim == 3:
        images = images[..., None]
    names, rows = np.unique(labels, return_inverse=True)
    return _gather(
        {str(name): images[rows == row] for row, name in enumerate(names)}, examples_per_class
    )


def from_folder(
    path: str | os.PathLike[str],
    *,
    size: int | tuple[int, int],
    grey: bool = False,
    examples_per_class: int | None = None,
) -> ImageClasses:
    """Reads a folder of folders: each of these is a class, and holds its images.

    Args:
      path: the folder. Files of other kinds than images are passed over.
      size: height and width in pixels, one number if they are equal. Images of another size are
        resized with the Lanczos filter of Pillow, whatever their proportions. They are turned as
        their Exif data say; what is transparent is white; 16 bits become 8.
      grey: one channel of brightness rather than three of colour.
      examples_per_class: as in `from_arrays`; the first in the order of the file names.

    Returns:
      The classes in the order of the names of their folders.

    Raises:
      FileNotFoundError: there is no such folder, or none in it that holds images.
      ImportError: Pillow is not installed.
      ValueError: an image cannot be read, or a class has too few, and the message names them; or an
        argument is out of range.

    Example:
      >>> import pathlib, tempfile
      >>> from PIL import Image
      >>> from metajax.tasks import FewShot, few_shot
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     for name in ("cat", "dog", "owl"):
      ...         (pathlib.Path(folder) / name).mkdir()
      ...         for i in range(4):
      ...             Image.new("RGB", (40, 30)).save(f"{folder}/{name}/{i}.png")
      ...     data = few_shot.from_folder(folder, size=32)
      >>> data.images.shape, data.names
      ((3, 4, 32, 32, 3), ('cat', 'dog', 'owl'))
      >>> tasks = FewShot(data.images, ways=3, shots=1, queries=3)
    """
    image_module, size = _pillow(), _height_and_width(size)
    root = Path(path).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder")
    files = {
        folder.name: sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES)
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    }
    files = {name: of_class for name, of_class in files.items() if of_class}
    if not files:
        raise FileNotFoundError(
            f"{root} holds no folder with images ({', '.join(_SUFFIXES)}); each class needs one"
        )
    keep = _examples({name: len(of_class) for name, of_class in files.items()}, examples_per_class)
    images: dict[str, list[np.ndarray]] = {name: [] for name in files}
    damaged = []
    for name, of_class in files.items():
        for file in of_class[:keep]:
            try:
                with image_module.open(file) as image:
                    images[name].append(_resized(image, size, grey))
            except Exception as error:  # of Pillow, depending on the damage
                damaged.append(f"{name}/{file.name} ({error})")
    if damaged:
        shown = ", ".join(damaged[:_SHOWN]) + (", ..." if len(damaged) > _SHOWN else "")
        raise ValueError(f"in {root}, {len(damaged)} image(s) cannot be read: {shown}")
    return _gather(images, keep)


def from_tfds(
    name: str,
    split: str | Iterable[str],
    *,
    size: int | tuple[int, int],
    grey: bool = False,
    examples_per_class: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    image: str = "image",
    label: str = "label",
) -> ImageClasses:
    """Reads a classification set of TensorFlow Datasets.

    Args:
      name: of the data set, with its configuration if it has several.
      split: `"train"`, or several such as `["train", "test"]`, one after the other: few-shot
        learning splits the classes, not the images of a class.
      size, grey: as in `from_folder`.
      examples_per_class: as in `from_arrays`; the first in the order of the data set.
      data_dir: where TensorFlow Datasets keeps its data; by default `$TFDS_DATA_DIR` or
        `~/tensorflow_datasets`. Data that are not there are downloaded and prepared if
        TensorFlow is installed.
      image, label: the features that hold them.

    Returns:
      The classes in the order of the data set.

    Raises:
      FileNotFoundError: there are no prepared data and they cannot be made.
      ImportError: tensorflow-datasets or Pillow is not installed.
      ValueError: a feature is not there or of another kind, an argument is out of range, or a class
        has too few images; the message names the smallest.

    Example:
      >>> from metajax.tasks import FewShot, few_shot
      >>> data = few_shot.from_tfds(
      ...     "oxford_flowers102", ["train", "validation"], size=84)  # doctest: +SKIP
      >>> data.images.shape  # doctest: +SKIP
      (102, 20, 84, 84, 3)
      >>> train, validation, test = data.split(62, 20, 20)  # doctest: +SKIP
    """
    image_module, size = _pillow(), _height_and_width(size)
    if examples_per_class is not None:
        check_integer("examples_per_class", examples_per_class)
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f'reading {name} needs tensorflow-datasets ({error}): pip install "metajax[data]"'
        ) from error
    builder = tfds.builder(name, data_dir=prepared.directory(data_dir))
    features = builder.info.features
    for feature in (image, label):
        if feature not in features:
            raise ValueError(
                f"{name} has no feature {feature!r}; it has {', '.join(map(repr, features))}"
            )
    if len(features[image].shape or ()) != 3 or not hasattr(features[label], "names"):
        raise ValueError(
            f"image={image!r} must name images and label={label!r} class labels of {name}, they "
            f"are {features[image]!r} and {features[label]!r}"
        )
    prepared.prepare(builder, name)
    splits = [split] if isinstance(split, str) else list(split)
    names = features[label].names
    images: dict[str, list[np.ndarray]] = {of_class: [] for of_class in names}
    for source in builder.as_data_source(split=splits):
        for record in source:
            of_class = images[names[record[label]]]
            if examples_per_class is None or len(of_class) < examples_per_class:
                pixels = np.asarray(record[image])
                pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
                of_class.append(_resized(image_module.fromarray(pixels), size, grey))
    found = {of_class: kept for of_class, kept in images.items() if kept}
    if not found:
        raise ValueError(f"{name} has no images in {', '.join(map(repr, splits))}")
    return _gather(found, examples_per_class)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            f'reading images needs Pillow ({error}): pip install "metajax[data]"'
        ) from error
    return Image


def _height_and_width(size: Any) -> tuple[int, int]:
    height, width = size if isinstance(size, tuple | list) and len(size) == 2 else (size, size)
    what = "size is the height and width in pixels; each"
    return check_integer(what, height), check_integer(what, width)


def _resized(image: Any, size: tuple[int, int], grey: bool) -> np.ndarray:
    from PIL import ImageOps

    height, width = size
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # Of 16 bits, which Pillow would cut off at 255.
        image = _pillow().fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = _pillow().alpha_composite(_pillow().new("RGBA", image.size, "white"), image)
    image = image.convert("L" if grey else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), _pillow().Resampling.LANCZOS)
    return np.asarray(image).reshape(height, width, -1)


def _examples(counts: Mapping[str, int], wanted: int | None) -> int:
    """How many images of each class to keep."""
    smallest = min(counts, key=counts.__getitem__)
    least, most = counts[smallest], max(counts.values())
    if wanted is None and least != most:
        raise ValueError(
            f"the classes have from {least} ({smallest!r}) to {most} images; pass "
            f"examples_per_class={least} to keep equally many of each, or leave small classes out"
        )
    if wanted is None:
        return least
    if check_integer("examples_per_class", wanted) > least:
        raise ValueError(
            f"examples_per_class={wanted} exceeds the {least} images of the smallest class, "
            f"{smallest!r}; lower it, or leave small classes out"
        )
    return wanted


def _gather(
    images: Mapping[str, np.ndarray | list[np.ndarray]], examples_per_class: int | None
) -> ImageClasses:
    if not images:
        raise ValueError("there are no images")
    keep = _examples({name: len(of_class) for name, of_class in images.items()}, examples_per_class)
    stacked = np.stack([np.asarray(of_class[:keep]) for of_class in images.values()])
    return ImageClasses(stacked, tuple(images))
