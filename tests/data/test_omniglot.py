"""Omniglot: the real data against an independent reading of them, and every way they can fail."""

import doctest
import hashlib
import logging
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from metajax.data import audit, omniglot

REMEDY = r'pip install "metajax\[data\]"'


def parts(data):
    return [(part.images, part.names) for part in data]


def by_name(data):
    return {
        name: drawings
        for images, names in parts(data)
        for name, drawings in zip(names, images, strict=True)
    }


# --- The real data -----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def data_dir(omniglot_data_dir):
    pytest.importorskip("tensorflow_datasets")
    return Path(omniglot_data_dir)


@pytest.fixture(scope="session")
def in_the_cache(data_dir):
    """Converts Omniglot, unless another test has done so."""
    omniglot.load(data_dir)


@pytest.fixture
def converted(in_the_cache, monkeypatch):
    """Makes `omniglot.load()` find the converted images, and neither prepared data nor TFDS."""
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)


@pytest.fixture(scope="session")
def records(data_dir):
    """Some records of both halves of the data, decoded by TFDS: 0 is ink and 1 is paper."""
    import tensorflow_datasets as tfds

    picked = []
    for source in tfds.data_source("omniglot", split=["train", "test"], data_dir=data_dir):
        names = source.dataset_info.features["label"].names
        for i in np.linspace(0, len(source) - 1, 20, dtype=int).tolist():
            # "Greek_0" in TFDS is the folder Greek/character01.
            alphabet, _, character = names[source[i]["label"]].rpartition("_")
            name = f"{alphabet}/character{int(character) + 1:02d}"
            picked.append((name, source[i]["image"][..., 0]))
    return picked


@pytest.mark.parametrize(("split", "sizes"), [("finn", (1100, 100)), ("vinyals", (1028, 172))])
def test_splits_cover_all_characters_once(converted, split, sizes):
    data = omniglot.load(split=split)
    for (images, names), size in zip(parts(data), (*sizes, 423), strict=True):
        assert images.shape == (size, 20, 28, 28, 1)
        assert images.dtype == np.uint8
        assert len(names) == size
    names = data.train.names + data.validation.names + data.test.names
    assert len(set(names)) == 1623
    assert len({name.split("/")[0] for name in names}) == 50


def test_both_splits_give_a_name_the_same_drawings(converted):
    finn, vinyals = by_name(omniglot.load()), by_name(omniglot.load(split="vinyals"))
    assert finn.keys() == vinyals.keys()
    for name, drawings in finn.items():
        np.testing.assert_array_equal(drawings, vinyals[name])


def test_ink_is_bright_and_scarce(converted):
    images = np.concatenate([images for images, _ in parts(omniglot.load())])[..., 0]
    assert images.max(axis=(2, 3)).min() > 127
    assert (images > 127).mean(axis=(2, 3)).max() < 0.25
    assert images[:, :, [0, -1]].mean() < 0.02 * 255


def test_drawings_are_those_of_the_named_character(converted, records):
    data = by_name(omniglot.load())
    edges = np.arange(29) * 105 // 28
    for name, image in records:
        ink = 1.0 - image
        blocks = np.add.reduceat(np.add.reduceat(ink, edges[:-1], axis=0), edges[:-1], axis=1)
        drawings = data[name].reshape(20, -1)
        assert max(np.corrcoef(drawing, blocks.ravel())[0, 1] for drawing in drawings) > 0.9


def test_drawings_of_a_character_differ(converted):
    copies = {
        name: 20 - len({drawing.tobytes() for drawing in drawings})
        for name, drawings in by_name(omniglot.load()).items()
    }
    # One file of the original data occurs twice.
    assert {name: num for name, num in copies.items() if num} == {"Braille/character01": 1}


@pytest.mark.parametrize("split", ["finn", "vinyals"])
def test_the_audit_finds_that_one_copy_and_nothing_else(converted, split):
    found = audit(omniglot.load(split=split), rotations=True)
    assert found["disjoint"] == {"classes": True, "images": True}
    (identical,) = found["identical_images"]
    assert identical["count"] == 1
    assert [name for name, _ in identical["pairs"][0]] == ["Braille/character01"] * 2
    assert found["rotated_classes"] == []


def test_nearest_is_the_filter_of_one_bit_files(data_dir, records, tmp_path):
    from PIL import Image

    data = by_name(omniglot.load(data_dir, size=20, resample="nearest", cache_dir=tmp_path))
    assert {value for drawings in data.values() for value in np.unique(drawings)} == {0, 255}
    for name, image in records:
        resized = Image.fromarray(image.astype(bool)).resize((20, 20), Image.Resampling.LANCZOS)
        ink = 255 * (1 - np.asarray(resized, np.uint8))
        assert (data[name][..., 0] == ink).all(axis=(1, 2)).any()


def test_the_default_cache_and_the_example_of_the_docstring(converted):
    (example,) = (
        test
        for test in doctest.DocTestFinder(recurse=False).find(omniglot.load, "load", omniglot)
        if test.examples
    )
    for line in example.examples:
        line.options.clear()  # skipped elsewhere, where there may be no data
    assert doctest.DocTestRunner().run(example) == (0, len(example.examples))


# --- The class lists ---------------------------------------------------------------------------


def digest(names):
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]


def test_vinyals_split_is_the_published_one():
    train, validation, test = omniglot._vinyals_split()
    assert digest(train) == "c350ea5778649d32"
    assert digest(validation) == "d3f56052fbd17195"
    assert digest(test) == "bbbdc01c73fd2d34"
    alphabets = [{name.split("/")[0] for name in part} for part in (train, validation, test)]
    assert alphabets[0] & alphabets[2] == {"Gurmukhi"}
    assert alphabets[1].isdisjoint(alphabets[0] | alphabets[2])


def test_finn_split_is_one_fixed_shuffle():
    names = [name for part in omniglot._vinyals_split() for name in part]
    splits = omniglot._finn_split(names)
    assert [digest(part) for part in splits] == [
        "05a9c357ceb315b2",
        "9ebdceb84489dafe",
        "062c5cfc90f9445b",
    ]
    assert splits == omniglot._finn_split(names[::-1])
    assert splits[0][:2] == ("Gurmukhi/character23", "Malayalam/character36")


# --- The cache ---------------------------------------------------------------------------------


@pytest.fixture
def conversions(monkeypatch):
    """Replaces the conversion by one of noise, and counts how often it runs."""
    names = tuple(sorted(name for part in omniglot._vinyals_split() for name in part))
    images = np.random.default_rng(0).integers(0, 256, (1623, 20, 1, 1, 1), dtype=np.uint8)
    calls = []

    def convert(data_dir, size, resample):
        calls.append((data_dir, size, resample))
        return omniglot._Characters(images, names)

    monkeypatch.setattr(omniglot, "_convert", convert)
    return calls


def load_small(cache_dir, **settings):
    return omniglot.load(size=1, cache_dir=cache_dir, **settings)


def assert_same(one, two):
    for (images, names), (other_images, other_names) in zip(parts(one), parts(two), strict=True):
        np.testing.assert_array_equal(images, other_images)
        assert names == other_names


def test_converts_once_for_all_splits_and_once_per_kind_of_image(conversions, tmp_path):
    assert_same(load_small(tmp_path), load_small(tmp_path))
    load_small(tmp_path, split="vinyals")
    assert len(conversions) == 1
    load_small(tmp_path, resample="nearest")
    omniglot.load(tmp_path, size=2, cache_dir=tmp_path)
    assert conversions == [
        (None, 1, "lanczos"),
        (None, 1, "nearest"),
        (tmp_path, 2, "lanczos"),
    ]
    assert len(list(tmp_path.iterdir())) == 3


def test_damaged_data_that_are_named_are_not_covered_up_by_a_cache(conversions, tmp_path):
    whole, damaged, caches = tmp_path / "whole", tmp_path / "damaged", tmp_path / "caches"
    for size, folder in enumerate((whole, damaged)):
        (folder / "omniglot").mkdir(parents=True)
        (folder / "omniglot" / "records").write_bytes(b"." * size)
    for folder in (whole, whole, None, damaged, None, whole):
        omniglot.load(folder, size=1, cache_dir=caches)
    assert [folder for folder, _, _ in conversions] == [whole, damaged, whole]


def rewrite(path, **changes):
    with np.load(path) as stored:
        contents = dict(stored)
    for name, change in changes.items():
        contents[name] = change(contents[name])
    np.savez(path, **contents)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


DAMAGE = {
    "truncated": (truncate, ""),
    "empty": (lambda path: path.write_bytes(b""), ""),
    "garbage": (lambda path: path.write_bytes(b"not an archive"), ""),
    "another version": (
        lambda path: rewrite(path, version=lambda version: version + 1),
        "its version is 2, not 1",
    ),
    "another image": (
        lambda path: rewrite(path, images=lambda images: images ^ 1),
        "its checksum does not match",
    ),
    "names in another order": (
        lambda path: rewrite(path, names=lambda names: names[::-1]),
        "its checksum does not match",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_cache_is_rebuilt_with_a_warning(kind, conversions, tmp_path, caplog):
    damage, reason = DAMAGE[kind]
    intact = load_small(tmp_path)
    (path,) = tmp_path.iterdir()
    damage(path)
    with caplog.at_level(logging.WARNING):
        assert_same(load_small(tmp_path), intact)
    assert len(conversions) == 2
    assert f"rebuilding the Omniglot cache {path}" in caplog.text
    assert reason in caplog.text
    caplog.clear()
    assert_same(load_small(tmp_path), intact)
    assert len(conversions) == 2
    assert not caplog.records


def test_no_single_flipped_bit_gives_wrong_data(conversions, tmp_path):
    load_small(tmp_path)
    (path,) = tmp_path.iterdir()
    intact, expected = path.read_bytes(), omniglot._read_cache(path)
    generator = random.Random(0)
    rejected = 0
    for _ in range(200):
        damaged = bytearray(intact)
        damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        found = omniglot._read_cache(path)
        if found is None:
            rejected += 1
        else:  # a bit that nothing depends on, such as one of a time stamp
            assert found.names == expected.names
            np.testing.assert_array_equal(found.images, expected.images)
    assert rejected > 180


def test_a_kill_while_writing_leaves_no_cache(conversions, tmp_path, monkeypatch):
    savez = np.savez

    def killed(path, **contents):
        savez(path, **contents)
        truncate(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", killed)
    with pytest.raises(KeyboardInterrupt):
        load_small(tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(np, "savez", savez)
    load_small(tmp_path)
    load_small(tmp_path)
    assert len(conversions) == 2


def test_importing_the_data_sets_loads_no_reader_of_files():
    code = (
        "import sys, metajax.data; "
        "print({'tensorflow_datasets', 'tensorflow', 'PIL', 'array_record'} & {*sys.modules})"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"
