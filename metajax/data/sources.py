"""Classes of images from whatever a user has: arrays, folders, TensorFlow Datasets."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metajax.base import check_integer
from metajax.data import prepared
from metajax.data.images import Images

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_SHOWN = 5  # how many names of damaged files a message spells out


def from_arrays(images: Any, labels: Any, *, examples_per_class: int | None = None) -> Images:
    """Sorts images by their labels.

    Args:
      images: uint8 `[n, height, width]` or `[n, height, width, channels]`.
      labels: `[n]` integers or strings.
      examples_per_class: keep exactly so many of each class, the first ones; by default all.

    Returns:
      The classes in ascending order of their labels; see `Images.split` and `Images.with_at_least`.

    Raises:
      ValueError: the arrays do not fit together, or a class has too few images; the message names
        the smallest.

    Example:
      >>> import numpy as np
      >>> from metajax import data
      >>> from metajax.tasks import FewShot
      >>> images = np.random.default_rng(0).integers(0, 256, (50, 28, 28), np.uint8)
      >>> labels = np.repeat(["axe", "bow", "cup", "dot", "egg"], [8, 12, 10, 10, 10])
      >>> tools = data.from_arrays(images, labels)
      >>> tools, tools.names
      (Images(5 classes, 8 to 12 examples, 28 x 28 x 1), ('axe', 'bow', 'cup', 'dot', 'egg'))
      >>> tasks = FewShot(tools, ways=5, shots=1, queries=5)
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
) -> Images:
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
      >>> from metajax import data
      >>> from metajax.tasks import FewShot
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     for name in ("cat", "dog", "owl"):
      ...         (pathlib.Path(folder) / name).mkdir()
      ...         for i in range(4):
      ...             Image.new("RGB", (40, 30)).save(f"{folder}/{name}/{i}.png")
      ...     animals = data.from_folder(folder, size=32)
      >>> animals, animals.names
      (Images(3 classes, 4 examples each, 32 x 32 x 3), ('cat', 'dog', 'owl'))
      >>> tasks = FewShot(animals, ways=3, shots=1, queries=3)
    """
    image_module, size = _pillow(), _height_and_width(size)
    root = Path(path).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root} is no folder: name one that holds a folder of images for each class"
        )
    files = {
        folder.name: sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES)
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    }
    files = {name: paths for name, paths in files.items() if paths}
    if not files:
        raise FileNotFoundError(
            f"{root} holds no folder with images ({', '.join(_SUFFIXES)}); each class needs one"
        )
    _check_examples({name: len(paths) for name, paths in files.items()}, examples_per_class)
    images: dict[str, list[np.ndarray]] = {name: [] for name in files}
    damaged = []
    for name, paths in files.items():
        for file in paths[:examples_per_class]:
            try:
                with image_module.open(file) as image:
                    images[name].append(_resized(image, size, grey))
            except Exception as error:  # of Pillow, depending on the damage
                damaged.append(f"{name}/{file.name} ({error})")
    if damaged:
        shown = ", ".join(damaged[:_SHOWN]) + (", ..." if len(damaged) > _SHOWN else "")
        raise ValueError(f"in {root}, {len(damaged)} image(s) cannot be read: {shown}")
    return _gather(images, examples_per_class)


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
) -> Images:
    """Reads a classification set of TensorFlow Datasets.

    Args:
      name: of the data set, with its configuration if it has several.
      split: `"train"`, or several such as `["train", "test"]`, one after the other: few-shot
        learning splits the classes, not the images of a class.
      size, grey: as in `from_folder`.
      examples_per_class: as in `from_arrays`; the first in the order of the data set.
      data_dir: where TensorFlow Datasets keeps its data; by default `$TFDS_DATA_DIR` or
        `~/tensorflow_datasets`. Data that are not in this folder are downloaded and prepared if
        TensorFlow is installed.
      image, label: the features that hold them.

    Returns:
      The classes in the order of the data set.

    Raises:
      FileNotFoundError: `data_dir` does not exist, or it holds no prepared data and they cannot be
        made.
      ImportError: tensorflow-datasets or Pillow is not installed.
      ValueError: the data set or a feature is unknown or of another kind, an argument is out of
        range, or a class has too few images; the message names the smallest.

    Example:
      >>> from metajax import data
      >>> flowers = data.from_tfds(
      ...     "oxford_flowers102", ["train", "validation"], size=84)  # doctest: +SKIP
      >>> flowers  # doctest: +SKIP
      Images(102 classes, 20 examples each, 84 x 84 x 3)
      >>> splits = data.Splits(*flowers.split(62, 20, 20))  # doctest: +SKIP
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
    root = prepared.directory(data_dir, name)
    try:
        builder = tfds.builder(name, data_dir=root)
    except tfds.core.DatasetNotFoundError:
        raise ValueError(
            f"TensorFlow Datasets {tfds.__version__} has no data set {name!r}; "
            f"tfds.list_builders() names all"
        ) from None
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
    images: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for source in builder.as_data_source(split=splits):
        for record in source:
            kept = images[names[record[label]]]
            if examples_per_class is None or len(kept) < examples_per_class:
                pixels = np.asarray(record[image])
                pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
                kept.append(_resized(image_module.fromarray(pixels), size, grey))
    found = {name: kept for name, kept in images.items() if kept}
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


def _check_examples(counts: Mapping[str, int], examples_per_class: int | None) -> None:
    if examples_per_class is None:
        return
    smallest = min(counts, key=counts.__getitem__)
    if check_integer("examples_per_class", examples_per_class) > counts[smallest]:
        raise ValueError(
            f"examples_per_class={examples_per_class} exceeds the {counts[smallest]} images of the "
            f"smallest class, {smallest!r}; lower it, or leave small classes out"
        )


def _gather(
    classes: Mapping[str, np.ndarray | list[np.ndarray]], examples_per_class: int | None
) -> Images:
    if not classes:
        raise ValueError("there are no images")
    _check_examples({name: len(examples) for name, examples in classes.items()}, examples_per_class)
    return Images.from_classes(
        {name: np.asarray(examples[:examples_per_class]) for name, examples in classes.items()}
    )
