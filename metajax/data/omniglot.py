"""Omniglot (Lake et al. 2015): 1623 characters of 50 alphabets, each drawn by 20 people."""

from __future__ import annotations

import collections
import hashlib
import importlib.resources
import io
import json
import logging
import os
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from metajax.base import check_integer
from metajax.data import cache, prepared
from metajax.data.images import Images, Splits

_TITLE, _CHARACTERS, _DRAWINGS = "Omniglot", 1623, 20
_CACHE_VERSION = 1  # raised whenever the conversion below changes what it returns

_logger = logging.getLogger(__name__)

Split = Literal["finn", "vinyals"]
Resample = Literal["lanczos", "nearest"]


def load(
    data_dir: str | os.PathLike[str] | None = None,
    *,
    split: Split = "finn",
    size: int = 28,
    resample: Resample = "lanczos",
    cache_dir: str | os.PathLike[str] | None = None,
) -> Splits:
    """Loads Omniglot, small and bright on dark, from TensorFlow Datasets.

    The first call reads the prepared data (TensorFlow itself is not needed for that), resizes the
    105 x 105 drawings, inverts them, and keeps the result in `cache_dir`. Later calls read only
    that: 25 MB at 28 x 28, checked against its checksum, rebuilt where it is damaged, or where
    `data_dir` names other data than those that it was made from.

    Args:
      data_dir: where TensorFlow Datasets keeps its data; by default `$TFDS_DATA_DIR` or
        `~/tensorflow_datasets`. Data that are not in this folder are downloaded and prepared if
        TensorFlow is installed.
      split: which classes are for what, 1623 in all.
        `"finn"`: 1100 / 100 / 423, all characters shuffled, so that alphabets are shared (Finn et
        al. 2017). The authors shuffle in the order of their file system; here it is the sorted
        names, shuffled by `random.Random(1)`.
        `"vinyals"`: 1028 / 172 / 423, by alphabet except that Gurmukhi is in train and in test
        (Vinyals et al. 2016, in the lists that later work shares).
      size: height and width of the images, in pixels.
      resample: the filter they are resized with. `"lanczos"` leaves grey edges. `"nearest"` keeps
        the drawings black and white; it is also what `Image.resize` of Pillow makes of any filter
        on the 1-bit files of the original data.
      cache_dir: where the converted images are kept; by default `metajax/omniglot` in
        `$XDG_CACHE_HOME` or `~/.cache`. All splits share one file.

    Returns:
      Three sets of classes of 20 drawings, uint8 `[classes, 20, size, size, 1]`, paper 0 and ink
      255. The names of the classes are those of the original data's folders, such as
      `"Greek/character01"`.

    Raises:
      FileNotFoundError: `data_dir` does not exist, or it holds no prepared data and they cannot be
        made.
      ImportError: they must be read and tensorflow-datasets or Pillow is not installed.
      ValueError: an argument is out of range, or the prepared data are damaged or incomplete.

    Example:
      >>> from metajax.data import omniglot
      >>> from metajax.tasks import FewShot
      >>> data = omniglot.load()  # doctest: +SKIP
      >>> data.train  # doctest: +SKIP
      Images(1100 classes, 20 examples each, 28 x 28 x 1)
      >>> tasks = FewShot(data.train, ways=5, shots=1, queries=15, rotate=True)  # doctest: +SKIP

    References:
      Lake et al., Human-level concept learning through probabilistic program induction, 2015;
      Finn et al., Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks, 2017,
      section 5.2; Vinyals et al., Matching Networks for One Shot Learning, 2016, section 4.1.1.
    """
    for name, value, choices in (("split", split, Split), ("resample", resample, Resample)):
        if value not in get_args(choices):
            raise ValueError(f"{name} must be one of {get_args(choices)}, got {value!r}")
    size = check_integer("size", size)
    if data_dir:
        prepared.directory(data_dir, _TITLE)  # a wrong name is no less wrong where a cache exists
    cache_dir = Path(cache_dir or cache.default_dir("omniglot")).expanduser()
    path = cache_dir / f"{resample}-{size}.npz"
    origin = prepared.fingerprint(data_dir, _TITLE, "omniglot") if data_dir else None
    characters = _read_cache(path, origin)
    if characters is None:
        characters = _convert(data_dir, size, resample)
        _write_cache(path, characters, prepared.fingerprint(data_dir, _TITLE, "omniglot"))

    splits = _finn_split(characters.names) if split == "finn" else _vinyals_split()
    row = {name: i for i, name in enumerate(characters.names)}
    rows = ([row[name] for name in part] for part in splits)
    parts = (Images(characters.images[r], names) for r, names in zip(rows, splits, strict=True))
    return Splits(*parts)


class _Characters(NamedTuple):
    images: np.ndarray  # uint8 [1623, 20, size, size, 1]
    names: tuple[str, ...]  # ascending

    def checksum(self) -> str:
        digest = hashlib.sha256("\n".join(self.names).encode())
        digest.update(self.images.tobytes())
        return digest.hexdigest()


_Names = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]


def _finn_split(names: Sequence[str]) -> _Names:
    shuffled = sorted(names)
    random.Random(1).shuffle(shuffled)
    return tuple(shuffled[:1100]), tuple(shuffled[1100:1200]), tuple(shuffled[1200:])


def _vinyals_split() -> _Names:
    # {split: {alphabet: [first character, last character]}}
    text = importlib.resources.files(__package__).joinpath("omniglot_vinyals.json").read_text()
    train, validation, test = (
        tuple(
            _name(alphabet, character)
            for alphabet, (first, last) in alphabets.items()
            for character in range(first, last + 1)
        )
        for alphabets in json.loads(text).values()
    )
    return train, validation, test


def _name(alphabet: str, character: int) -> str:
    return f"{alphabet}/character{character:02d}"


def _convert(data_dir: str | os.PathLike[str] | None, size: int, resample: Resample) -> _Characters:
    """Reads all drawings from the prepared data."""
    try:
        import tensorflow_datasets as tfds
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            f"reading Omniglot needs tensorflow-datasets and Pillow ({error}): "
            f'pip install "metajax[data]"'
        ) from error

    root = prepared.directory(data_dir, _TITLE)
    again = f"delete {root / 'omniglot'} and prepare it again, in the file format array_record"
    drawings = collections.defaultdict(list)
    try:
        builder = tfds.builder("omniglot", data_dir=root)
        prepared.prepare(builder, _TITLE)
        _logger.info("converting the Omniglot of %s", root)
        # The PNG files themselves: decoders of TFDS disagree on whether paper is 1 or 255.
        sources = builder.as_data_source(
            split=["train", "test"], decoders={"image": tfds.decode.SkipDecoding()}
        )
        alphabets = builder.info.features["alphabet"].names
        for source in sources:
            for record in source:
                image = Image.open(io.BytesIO(record["image"])).convert("L")
                image = image.resize((size, size), Image.Resampling[resample.upper()])
                name = _name(alphabets[record["alphabet"]], record["alphabet_char_id"] + 1)
                drawings[name].append(255 - np.asarray(image)[..., None])
    except FileNotFoundError:
        raise
    except Exception as error:  # of TFDS, array_record or Pillow, depending on the damage
        raise ValueError(
            f"the prepared Omniglot in {root} cannot be read ({error}); {again}"
        ) from error

    names = tuple(sorted(drawings))
    unknown = set(names).difference(*_vinyals_split())
    counts = {len(images) for images in drawings.values()}
    if unknown or len(names) != _CHARACTERS or counts != {_DRAWINGS}:
        raise ValueError(
            f"the prepared Omniglot in {root} holds {len(names)} characters, {len(unknown)} of "
            f"them unknown, with {sorted(counts)} drawings of each, rather than the "
            f"{_CHARACTERS} known ones with {_DRAWINGS} each; {again}"
        )
    return _Characters(np.stack([np.stack(drawings[name]) for name in names]), names)


def _read_cache(path: Path, origin: str | None = None) -> _Characters | None:
    """Returns what `_write_cache` wrote, or None where the file is absent or not to be trusted."""
    try:
        with path.open("rb") as file, np.load(file) as stored:
            if stored["version"] != _CACHE_VERSION:
                raise ValueError(f"its version is {stored['version']}, not {_CACHE_VERSION}")
            characters = _Characters(stored["images"], tuple(stored["names"].tolist()))
            if stored["sha256"] != characters.checksum():
                raise ValueError("its checksum does not match")
            if origin is not None and str(stored.get("origin")) != origin:
                raise ValueError("it was made from other data than those that are named now")
            return characters
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged archive fails in many ways; the remedy is the same
        _logger.warning("rebuilding the Omniglot cache %s: %s", path, error)
        return None


def _write_cache(path: Path, characters: _Characters, origin: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written aside and moved into place, so that a half-written file never has the name.
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        written = Path(directory) / path.name
        np.savez(
            written,
            version=_CACHE_VERSION,
            sha256=characters.checksum(),
            origin=origin,
            names=characters.names,
            images=characters.images,
        )
        written.replace(path)
