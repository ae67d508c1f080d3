"""Mini-ImageNet: a small copy in every form, every way it can fail, and the real images."""

import csv
import doctest
import hashlib
import io
import logging
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from metajax.data import audit, mini_imagenet
from metajax.tasks import FewShot
from tests.data.small_mini_imagenet import SHORT, SPEC, assert_right, load, pixels

Image = pytest.importorskip("PIL.Image")


def encode(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")  # without loss; told by its content, not its name
    return file.getvalue()


class Source:
    """A small Mini-ImageNet as tables and images, in memory until it is written."""

    def __init__(self):
        self.rows, self.files = {}, {}
        for split, images in pixels().items():
            self.rows[split] = [
                (f"{name}{column}.jpg", name) for column in range(4) for name in SPEC.classes[split]
            ]
            for name, examples in zip(SPEC.classes[split], images, strict=True):
                for column, example in enumerate(examples):
                    self.files[f"{name}{column}.jpg"] = encode(example)

    def write(self, root, form="folder"):
        root.mkdir(parents=True, exist_ok=True)
        for split, rows in self.rows.items():
            with (root / f"{SHORT[split]}.csv").open("w", newline="") as file:
                csv.writer(file).writerows([("filename", "label"), *rows])
        (root / "images").mkdir()
        for i, (name, contents) in enumerate(self.files.items()):
            if form == "folder" or (form == "both" and i % 3 == 0):
                (root / "images" / name).write_bytes(contents)
            else:
                with zipfile.ZipFile(root / f"images-{i % 2}.zip", "a") as archive:
                    archive.writestr(f"images/{name}", contents)
        return root


# --- Tables and images -------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "zips", "both"])
def test_tables_and_images(form, root, cache):
    assert_right(load(Source().write(root, form), cache))


def test_converted_once_and_mapped(root, cache):
    load(Source().write(root), cache)
    for path in root.glob("*.csv"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="no Mini-ImageNet in"):
        load(root, cache)
    data = load(None, cache)
    assert_right(data)
    assert isinstance(data.train.array, np.memmap)
    assert FewShot(data.train, ways=3, shots=1, queries=1).images.shape == (3, 4, 6, 6, 3)


def test_the_directory_of_the_environment(root, cache, monkeypatch):
    Source().write(root)
    monkeypatch.setenv("MINI_IMAGENET_DIR", str(root))
    assert_right(load(None, cache))


def test_other_sizes_and_modes_are_converted(root, cache):
    source = Source()
    large = np.random.default_rng(1).integers(0, 256, (9, 12, 3), np.uint8)
    grey = np.full((6, 6), 7, np.uint8)
    source.files |= {"n010.jpg": encode(large), "n042.jpg": encode(grey)}
    data = load(source.write(root), cache)
    resized = Image.fromarray(large).resize((6, 6), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(data.train.images[0, 0], np.asarray(resized))
    assert (data.validation.images[0, 2] == 7).all()


def test_nothing_there_is_explained(root, cache):
    root.mkdir()
    message = f"no Mini-ImageNet in {root}: pass as .*MINI_IMAGENET_DIR.*train.csv.*cache-train.pkl"
    with pytest.raises(FileNotFoundError, match=message):
        load(root, cache)


def test_a_missing_table_is_named(root, cache):
    Source().write(root)
    (root / "val.csv").unlink()
    with pytest.raises(FileNotFoundError, match=f"Mini-ImageNet in {root} lacks val.csv"):
        load(root, cache)


def test_missing_images_are_counted_and_the_first_named(root, cache):
    source = Source()
    for name in ("n010", "n022", "n030", "n041", "n042", "n063"):
        del source.files[f"{name}.jpg"]
    message = (
        r"lack 6 images \(n010.jpg, n022.jpg, n030.jpg, n041.jpg, n042.jpg, \.\.\.\) of the 24"
    )
    with pytest.raises(FileNotFoundError, match=message):
        load(source.write(root), cache)
    assert [path.name for path in cache.iterdir()] == ["lock"]


def test_damaged_images_are_all_named(root, cache):
    source = Source()
    source.files["n010.jpg"] = source.files["n010.jpg"][:60]
    source.files["n061.jpg"] = b"no image"
    with pytest.raises(ValueError, match=r"2 images \(n010.jpg \(.*n061.jpg \(.*cannot be read"):
        load(source.write(root), cache)
    assert [path.name for path in cache.iterdir()] == ["lock"]


def test_damage_within_a_zip_is_named(root, cache):
    Source().write(root, "zips")
    path = root / "images-0.zip"
    contents = bytearray(path.read_bytes())
    contents[contents.index(b"IDAT") + 20] ^= 1
    path.write_bytes(contents)
    with pytest.raises(ValueError, match=r"1 image \(n010.jpg \(Bad CRC-32.*cannot be read"):
        load(root, cache)


def test_a_damaged_zip_is_named(root, cache):
    Source().write(root, "zips")
    path = root / "images-0.zip"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"images-0.zip cannot be read"):
        load(root, cache)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda rows: rows[:-1],
            r"train.csv is not the train split .* 3 classes with 4 images each: it has not "
            r"4 images of 1 class \(n03\)",
        ),
        (
            lambda rows: [(file, label.replace("n02", "n77")) for file, label in rows],
            r"misses 1 class \(n02\) and holds the unknown 1 class \(n77\)",
        ),
        (
            lambda rows: [(file.replace("n011", "n010"), label) for file, label in rows],
            r"name 1 image \(n010.jpg\) twice",
        ),
    ],
)
def test_tables_of_another_split_are_refused(change, message, root, cache):
    source = Source()
    source.rows["train"] = change(source.rows["train"])
    with pytest.raises(ValueError, match=message):
        load(source.write(root), cache)


def test_a_table_without_its_columns_is_refused(root, cache):
    Source().write(root)
    (root / "test.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"test.csv is no table with the columns filename and lab"):
        load(root, cache)


def test_pillow_not_installed(root, cache, monkeypatch):
    Source().write(root)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r'needs Pillow and tqdm .*pip install "metajax\[data\]"'):
        load(root, cache)


# --- The real data -----------------------------------------------------------------------------


def test_the_class_lists_are_the_published_ones():
    words = mini_imagenet._words()
    digests = {
        split: hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
        for split, names in words.items()
    }
    assert {split: len(names) for split, names in words.items()} == {
        "train": 64,
        "validation": 16,
        "test": 20,
    }
    assert digests == {
        "train": "0f107a65ea80bf1e",
        "validation": "489f8af43b256009",
        "test": "0db5287e659efd33",
    }
    assert mini_imagenet.words("n02099601") == "golden retriever"


@pytest.fixture(scope="session")
def converted(mini_imagenet_data_dir):
    """Converts the images, unless another test has done so."""
    mini_imagenet.load(mini_imagenet_data_dir)


@pytest.mark.slow
def test_real_images_are_those_of_the_files(mini_imagenet_data_dir, converted, monkeypatch):
    monkeypatch.setenv("MINI_IMAGENET_DIR", "nowhere")  # the cache is all there is
    data = mini_imagenet.load()
    shapes = [part.images.shape for part in data]
    assert shapes == [(classes, 600, 84, 84, 3) for classes in (64, 16, 20)]
    sources = mini_imagenet._find_images(Path(mini_imagenet_data_dir))
    for split, short in SHORT.items():
        with open(f"{mini_imagenet_data_dir}/{short}.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        for i in np.linspace(0, len(rows) - 1, 20, dtype=int).tolist():
            name = rows[i]["label"]
            part = getattr(data, split)
            column = [r["filename"] for r in rows if r["label"] == name].index(rows[i]["filename"])
            image = Image.open(io.BytesIO(sources[rows[i]["filename"]]()))
            found = part.images[part.names.index(name), column]
            np.testing.assert_array_equal(found, np.asarray(image))


@pytest.mark.slow
def test_the_audit_finds_the_copies_across_train_and_validation(converted, monkeypatch):
    monkeypatch.setenv("MINI_IMAGENET_DIR", "nowhere")  # the cache is all there is
    data = mini_imagenet.load()
    found = audit(data)
    assert found["disjoint"] == {"classes": True, "images": False}
    counts = {tuple(f["splits"]): f["count"] for f in found["identical_images"]}
    assert counts == {("train", "train"): 2, ("train", "validation"): 6}
    (across,) = (f for f in found["identical_images"] if f["splits"] == ["train", "validation"])
    # Parallel bars and horizontal bars; a tank and a cannon.
    classes = {(one, other) for (one, _), (other, _) in across["pairs"]}
    assert classes == {("n03888605", "n03535780"), ("n04389033", "n02950826")}


@pytest.mark.slow
def test_the_example_of_the_docstring(converted, caplog):
    (example,) = (
        test
        for test in doctest.DocTestFinder(recurse=False).find(
            mini_imagenet.load, "load", mini_imagenet
        )
        if test.examples
    )
    for line in example.examples:
        line.options.clear()  # skipped elsewhere, where there may be no data
    with caplog.at_level(logging.INFO):
        assert doctest.DocTestRunner().run(example) == (0, len(example.examples))
    assert not caplog.records  # nothing was converted
