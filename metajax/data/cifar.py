"""CIFAR-FS and FC100: the 100 classes of CIFAR-100 split for few-shot learning.

The class lists and the conversion are tested; nobody has run this on the real images yet.
"""

from __future__ import annotations

import importlib.resources
import json
import logging
import os
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from metajax.data import cache, prepared
from metajax.data.images import Images, Splits

_TITLE, _EXAMPLES, _SIZE = "CIFAR-100", 600, 32
_CACHE_VERSION = 1  # raised whenever the conversion below changes what it returns

_logger = logging.getLogger(__name__)

Split = Literal["cifar_fs", "fc100"]


def load(
    data_dir: str | os.PathLike[str] | None = None,
    *,
    split: Split = "cifar_fs",
    cache_dir: str | os.PathLike[str] | None = None,
) -> Splits:
    """Loads CIFAR-FS or FC100 from the `cifar100` of TensorFlow Datasets.

    Untested on the real images. A class has its 500 training images first and then its 100 test
    images. The first call keeps all of them in `cache_dir`, 184 MB; later calls read only that,
    and check it against its checksum.

    Args:
      data_dir: where TensorFlow Datasets keeps its data; by default `$TFDS_DATA_DIR` or
        `~/tensorflow_datasets`. Data that are not in this folder are downloaded and prepared if
        TensorFlow is installed.
      split: which classes are for what.
        `"cifar_fs"`: 64 / 16 / 20, drawn at random by Bertinetto et al. 2019.
        `"fc100"`: 60 / 20 / 20, by superclass, so that test classes are less like those of
        training (Oreshkin et al. 2018).
      cache_dir: where the converted images are kept; by default `metajax/cifar100` in
        `$XDG_CACHE_HOME` or `~/.cache`. Both splits share it.

    Returns:
      Three sets of classes of 600 images, uint8 `[classes, 600, 32, 32, 3]`, in alphabetical order
      of their names, such as `"sweet_pepper"`.

    Raises:
      FileNotFoundError: `data_dir` does not exist, or it holds no prepared data and they cannot be
        made.
      ImportError: they must be read and tensorflow-datasets is not installed.
      ValueError: `split` is unknown, or the prepared data are damaged or incomplete.

    Example:
      >>> from metajax.data import cifar
      >>> from metajax.tasks import FewShot
      >>> data = cifar.load(split="fc100")  # doctest: +SKIP
      >>> data.train  # doctest: +SKIP
      Images(60 classes, 600 examples each, 32 x 32 x 3)
      >>> tasks = FewShot(data.train, ways=5, shots=1, queries=15)  # doctest: +SKIP

    References:
      Bertinetto et al., Meta-learning with differentiable closed-form solvers, 2019, section 4.1;
      Oreshkin et al., TADAM: Task dependent adaptive metric for improved few-shot learning, 2018,
      section 4.1.
    """
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {get_args(Split)}, got {split!r}")
    return _load(_EXAMPLES, data_dir, split, cache_dir)


def _load(
    examples: int,
    data_dir: str | os.PathLike[str] | None,
    split: Split,
    cache_dir: str | os.PathLike[str] | None,
) -> Splits:
    if data_dir:
        prepared.directory(data_dir, _TITLE)  # a wrong name is no less wrong where a cache exists
    splits = _splits(split)
    names = sorted(name for part in splits for name in part)
    arrays = cache.cached(
        cache_dir or cache.default_dir("cifar100"),
        {"version": _CACHE_VERSION, "classes": names, "examples": examples},
        lambda directory: _convert(names, examples, data_dir, directory),
        lambda: prepared.fingerprint(data_dir, _TITLE, "cifar100"),
        compare=bool(data_dir),
    )
    row = {name: i for i, name in enumerate(names)}
    images = arrays["images"]
    return Splits(*(Images(images[[row[name] for name in part]], part) for part in splits))


def _splits(split: Split) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    text = importlib.resources.files(__package__).joinpath("cifar_classes.json").read_text()
    lists = json.loads(text)[split]
    return tuple(lists["train"]), tuple(lists["validation"]), tuple(lists["test"])


def _convert(
    names: list[str],
    examples: int,
    data_dir: str | os.PathLike[str] | None,
    directory: Path,
) -> str:
    """Writes the images of all classes, in the order of `names`."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f'reading CIFAR-100 needs tensorflow-datasets ({error}): pip install "metajax[data]"'
        ) from error

    root = prepared.directory(data_dir, _TITLE)
    again = f"delete {root / 'cifar100'} and prepare it again, in the file format array_record"
    images: dict[str, list[np.ndarray]] = {name: [] for name in names}
    unknown: set[str] = set()
    try:
        builder = tfds.builder("cifar100", data_dir=root)
        prepared.prepare(builder, _TITLE)
        _logger.info("converting the CIFAR-100 of %s", root)
        labels = builder.info.features["label"].names
        for source in builder.as_data_source(split=["train", "test"]):
            for record in source:
                name = labels[record["label"]]
                if name in images:
                    images[name].append(np.asarray(record["image"]))
                else:
                    unknown.add(name)
    except FileNotFoundError:
        raise
    except Exception as error:  # of TFDS, array_record or Pillow, depending on the damage
        raise ValueError(
            f"the prepared CIFAR-100 in {root} cannot be read ({error}); {again}"
        ) from error

    counts = sorted({len(rows) for rows in images.values()})
    if unknown or counts != [examples]:
        raise ValueError(
            f"the prepared CIFAR-100 in {root} holds {counts} images of each class and "
            f"{len(unknown)} unknown classes {sorted(unknown)[:5]}, rather than {examples} of "
            f"each of the {len(names)} known ones; {again}"
        )
    stacked = np.stack([np.stack(images[name]) for name in names])
    if stacked.dtype != np.uint8 or stacked.shape[2:] != (_SIZE, _SIZE, 3):
        raise ValueError(
            f"the images of the CIFAR-100 in {root} are {stacked.dtype} {stacked.shape[2:]}, not "
            f"uint8 {(_SIZE, _SIZE, 3)}; {again}"
        )
    np.save(directory / "images.npy", stacked)
    return f"cifar100 of TensorFlow Datasets in {root}"
