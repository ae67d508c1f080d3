"""Mini-ImageNet: 100 classes of ImageNet with 600 images of 84 x 84 pixels each."""

from __future__ import annotations

import collections
import csv
import functools
import importlib.resources
import io
import json
import logging
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metajax.data import cache
from metajax.data.folders import data_folder, fingerprint
from metajax.data.images import Images, Splits

_EXAMPLES, _SIZE = 600, 84
_CACHE_VERSION = 1  # raised whenever the conversion below changes what it returns
# Our name of each split, and the one in the names of the files.
_SPLITS = {"train": "train", "validation": "val", "test": "test"}
_FILES = ("*.csv", "*.zip", "*.pkl", "images/*")
_REMEDY = (
    "pass as data_dir, or in $MINI_IMAGENET_DIR, a directory that holds train.csv, val.csv and "
    "test.csv of Ravi & Larochelle with the images they name in images/ or in zip files, or "
    "mini-imagenet-cache-train.pkl, mini-imagenet-cache-val.pkl and mini-imagenet-cache-test.pkl. "
    "The tables are those of github.com/twitter-research/meta-learning-lstm, the images fall under "
    "the terms of image-net.org"
)
_SHOWN = 5  # how many names of missing or damaged files a message spells out

_logger = logging.getLogger(__name__)


def load(
    data_dir: str | os.PathLike[str] | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Splits:
    """Loads Mini-ImageNet with the classes of Ravi & Larochelle 2017.

    The set cannot be downloaded here, since it falls under the terms of ImageNet. `data_dir` holds
    it in one of two forms:

    - `train.csv`, `val.csv` and `test.csv` (`filename,label`, by Ravi & Larochelle), and the images
      that they name in a folder `images/`, in zip files beside the tables, or in both. An image of
      another size is made 84 x 84 with the Lanczos filter of Pillow, as Finn et al. do.
    - `mini-imagenet-cache-train.pkl`, `-val.pkl` and `-test.pkl`, as many projects share them. They
      are read without running what else a pickle may contain.

    The first call converts the images, within a minute, and keeps 1.3 GB in `cache_dir`. Later
    calls read only that, and check it against its checksums.

    Args:
      data_dir: where the data are; by default `$MINI_IMAGENET_DIR` or `~/mini-imagenet`.
        Once the cache exists they are not read, unless `data_dir` names others than those that it
        was made from, by the names, sizes and times of the files.
      cache_dir: where the converted images are kept; by default `metajax/mini_imagenet` in
        `$XDG_CACHE_HOME` or `~/.cache`.

    Returns:
      64, 16 and 20 classes of 600 images, uint8 `[classes, 600, 84, 84, 3]`, mapped read-only from
      the cache: memory is taken up by what is used of them. A class is named by its WordNet
      identifier, such as `"n01532829"`, which `words` puts in words. Classes are in ascending order
      of the names, and the images of a class in the order of the table or the pickle.

    Raises:
      FileNotFoundError: `data_dir` does not exist, or the data, or some of the images, are missing;
        the message names them.
      ImportError: images must be read and Pillow or tqdm is not installed.
      ValueError: files are damaged, or hold other classes or counts than they must.

    Example:
      >>> from metajax.data import mini_imagenet
      >>> from metajax.tasks import FewShot
      >>> data = mini_imagenet.load()  # doctest: +SKIP
      >>> data.train  # doctest: +SKIP
      Images(64 classes, 600 examples each, 84 x 84 x 3)
      >>> tasks = FewShot(data.train, ways=5, shots=1, queries=15)  # doctest: +SKIP

    References:
      Vinyals et al., Matching Networks for One Shot Learning, 2016, section 4.1.2; Ravi and
      Larochelle, Optimization as a Model for Few-Shot Learning, 2017, section 5.1.
    """
    spec = _Spec({split: tuple(words) for split, words in _words().items()}, _EXAMPLES, _SIZE)
    return _load(spec, data_dir, cache_dir)


def words(name: str) -> str:
    """Says in words what a class shows.

    Args:
      name: its WordNet identifier, an entry of the `names` that `load` returns.

    Raises:
      KeyError: it is no class of Mini-ImageNet.

    Example:
      >>> words("n01532829")
      'house finch, linnet, Carpodacus mexicanus'
    """
    known = {name: text for split in _words().values() for name, text in split.items()}
    if name not in known:
        raise KeyError(f"{name!r} is no class of Mini-ImageNet, such as 'n01532829'")
    return known[name]


@functools.cache
def _words() -> dict[str, dict[str, str]]:
    text = importlib.resources.files(__package__).joinpath("mini_imagenet_classes.json").read_text()
    return json.loads(text)


class _Spec(NamedTuple):
    """What the data must be."""

    classes: dict[str, tuple[str, ...]]
    examples: int
    size: int

    def check(self, path: Path, split: str, counts: Mapping[str, int]) -> None:
        """Raises unless `counts` are those of the split: class to number of images."""
        expected = dict.fromkeys(self.classes[split], self.examples)
        if dict(counts) == expected:
            return
        faults = []
        for text, names in (
            ("misses", [*(expected.keys() - counts.keys())]),
            ("holds the unknown", [*(counts.keys() - expected.keys())]),
            (
                f"has not {self.examples} images of",
                [name for name in expected if counts.get(name, self.examples) != self.examples],
            ),
        ):
            if names:
                faults.append(f"{text} {_some(sorted(names), 'class', 'classes')}")
        raise ValueError(
            f"{path} is not the {split} split of Mini-ImageNet by Ravi & Larochelle, "
            f"{len(expected)} classes with {self.examples} images each: it {' and '.join(faults)}"
        )


def _load(
    spec: _Spec,
    data_dir: str | os.PathLike[str] | None,
    cache_dir: str | os.PathLike[str] | None,
) -> Splits:
    if data_dir:
        _root(data_dir)  # a wrong name is no less wrong where a cache exists
    identity = {"version": _CACHE_VERSION, **spec._asdict()}
    arrays = cache.cached(
        cache_dir or cache.default_dir("mini_imagenet"),
        identity,
        lambda directory: _convert(spec, data_dir, directory),
        lambda: fingerprint(_root(data_dir), _FILES),
        compare=bool(data_dir),
    )
    return Splits(*(Images(arrays[split], spec.classes[split]) for split in _SPLITS))


def _root(data_dir: str | os.PathLike[str] | None) -> Path:
    usual = "~/mini-imagenet"
    return data_folder(data_dir, "MINI_IMAGENET_DIR", usual, "Mini-ImageNet", _REMEDY)


def _convert(spec: _Spec, data_dir: str | os.PathLike[str] | None, directory: Path) -> str:
    """Writes one `.npy` file per split; returns what they were made of."""
    root = _root(data_dir)
    for form, name, convert in (
        ("CSVs and images", "{}.csv", _convert_images),
        ("pickles", "mini-imagenet-cache-{}.pkl", _convert_pickles),
    ):
        files = {split: root / name.format(short) for split, short in _SPLITS.items()}
        there = [path.is_file() for path in files.values()]
        if all(there):
            _logger.info("converting the Mini-ImageNet of %s (%s)", root, form)
            convert(spec, root, files, directory)
            return f"{form} in {root}"
        if any(there):
            missing = [
                path.name for path, found in zip(files.values(), there, strict=True) if not found
            ]
            raise FileNotFoundError(f"the Mini-ImageNet in {root} lacks {' and '.join(missing)}")
    raise FileNotFoundError(f"no Mini-ImageNet in {root}: {_REMEDY}")


def _create(directory: Path, spec: _Spec, split: str) -> np.ndarray:
    shape = (len(spec.classes[split]), spec.examples, spec.size, spec.size, 3)
    return np.lib.format.open_memmap(directory / f"{split}.npy", "w+", np.uint8, shape)


# --- Tables and images -------------------------------------------------------------------------


def _convert_images(spec: _Spec, root: Path, tables: Mapping[str, Path], directory: Path) -> None:
    try:
        from PIL import Image
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError(
            f'reading Mini-ImageNet needs Pillow and tqdm ({error}): pip install "metajax[data]"'
        ) from error

    rows = {split: _read_table(spec, split, path) for split, path in tables.items()}
    wanted = [name for split in rows.values() for names in split.values() for name in names]
    twice = [name for name, count in collections.Counter(wanted).items() if count > 1]
    if twice:
        raise ValueError(f"the tables in {root} name {_some(twice, 'image', 'images')} twice")
    sources = _find_images(root)
    missing = [name for name in wanted if name not in sources]
    if missing:
        raise FileNotFoundError(
            f"{root / 'images'} and the zip files in {root} lack "
            f"{_some(missing, 'image', 'images')} of the {len(wanted)} in the tables"
        )

    damaged = []
    with tqdm(total=len(wanted), desc="Mini-ImageNet", unit="image", disable=None) as progress:
        for split, classes in rows.items():
            images = _create(directory, spec, split)
            for row, name in enumerate(spec.classes[split]):
                for column, filename in enumerate(classes[name]):
                    try:
                        image = Image.open(io.BytesIO(sources[filename]())).convert("RGB")
                    except Exception as error:  # of Pillow or zipfile, depending on the damage
                        damaged.append(f"{filename} ({error})")
                        continue
                    if image.size != (spec.size, spec.size):
                        image = image.resize((spec.size, spec.size), Image.Resampling.LANCZOS)
                    images[row, column] = np.asarray(image)
                progress.update(spec.examples)
    if damaged:
        raise ValueError(
            f"in {root}, {_some(damaged, 'image', 'images')} cannot be read; replace them"
        )


def _read_table(spec: _Spec, split: str, path: Path) -> dict[str, list[str]]:
    """The names of the files of each class."""
    files = collections.defaultdict(list)
    try:
        # Some programs begin a table with a byte order mark.
        with path.open(newline="", encoding="utf-8-sig") as table:
            for row in (reader := csv.DictReader(table)):
                if not (row["label"] and row["filename"]):
                    raise csv.Error(f"line {reader.line_num} is cut off")
                files[row["label"]].append(row["filename"])
    except (KeyError, csv.Error, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is no table with the columns filename and label ({error!r})"
        ) from error
    spec.check(path, split, {name: len(filenames) for name, filenames in files.items()})
    return files


def _find_images(root: Path) -> dict[str, Callable[[], bytes]]:
    """Readers of all images by file name: of `images/`, and of zip files where it lacks them."""
    sources: dict[str, Callable[[], bytes]] = {}
    for path in sorted(root.glob("*.zip")):
        try:
            archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} cannot be read ({error}); replace it") from error
        for member in archive.namelist():
            sources[member.rpartition("/")[2]] = functools.partial(archive.read, member)
    folder = root / "images"
    if folder.is_dir():
        sources |= {entry.name: Path(entry.path).read_bytes for entry in os.scandir(folder)}
    return sources


# --- Pickles -----------------------------------------------------------------------------------


def _convert_pickles(spec: _Spec, root: Path, files: Mapping[str, Path], directory: Path) -> None:
    for split, path in files.items():
        pixels, rows = _read_pickle(path)
        spec.check(path, split, {name: len(indices) for name, indices in rows.items()})
        shape = pixels.shape
        if pixels.dtype != np.uint8 or shape[1:] != (spec.size, spec.size, 3):
            raise ValueError(
                f"{path} holds images of type {pixels.dtype} and shape {shape[1:]}, not uint8 "
                f"{(spec.size, spec.size, 3)}"
            )
        used = np.sort(np.concatenate([*rows.values()]))
        if not np.array_equal(used, np.unique(used)) or used[0] < 0 or used[-1] >= len(pixels):
            raise ValueError(
                f"{path}: the classes name an image twice, or one beyond the {len(pixels)} there"
            )
        images = _create(directory, spec, split)
        for row, name in enumerate(spec.classes[split]):
            images[row] = pixels[rows[name]]


def _read_pickle(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The images `[n, height, width, 3]`, and the indices of each class into them."""
    try:
        with path.open("rb") as file:
            # Python 2 wrote some of them; NumPy's arrays then need this encoding.
            contents = _NumPyUnpickler(file, encoding="latin1").load()
        pixels = contents["image_data"]
        if not isinstance(pixels, np.ndarray) or pixels.ndim != 4:
            raise ValueError("image_data is no array of images")
        rows = {}
        for name, indices in contents["class_dict"].items():
            rows[name] = np.asarray(indices)
            if rows[name].ndim != 1 or rows[name].dtype.kind not in "iu":
                raise ValueError(f"class {name} is no list of indices")
        return pixels, rows
    except Exception as error:  # bytes that are no pickle fail in many ways
        raise ValueError(
            f"{path} cannot be read as a pickle of image_data and class_dict ({error})"
        ) from error


class _NumPyUnpickler(pickle.Unpickler):
    """Reads containers, numbers, strings and arrays, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        package, _, rest = module.partition(".")
        # What arrays are made of; NumPy's own name for the module is `core` or `_core` by version.
        if package == "numpy" and rest.split(".")[0] in ("", "core", "_core") and name in _NUMPY:
            return _NUMPY[name]
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 writes bytes
            return _encode
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not plain data")


def _encode(text: str, encoding: str) -> bytes:
    return text.encode(encoding)


_NUMPY = {
    "ndarray": np.ndarray,
    "dtype": np.dtype,
    "_reconstruct": np.zeros(1).__reduce__()[0],
    "_frombuffer": np.zeros(1).__reduce_ex__(5)[0],
    "scalar": np.float64(0).__reduce__()[0],
}


def _some(names: Iterable[str], singular: str, plural: str) -> str:
    """`"3 images (a, b, c)"`, with no more than a few of the names."""
    names = list(names)
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{len(names)} {singular if len(names) == 1 else plural} ({shown})"
