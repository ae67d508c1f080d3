"""Users' own images: each is found again in the row of its class, and bad data are explained."""

import sys

import numpy as np
import pytest

from metajax import data as readers
from metajax.data import sources
from metajax.tasks import FewShot

Image = pytest.importorskip("PIL.Image")


def numbered(n, *shape):
    """Images of one value each, `0..n-1`."""
    return np.broadcast_to(
        np.arange(n, dtype=np.uint8).reshape(n, *[1] * len(shape)), (n, *shape)
    ).copy()


# --- Arrays ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3)])
def test_images_are_sorted_by_label(shape):
    data = readers.from_arrays(numbered(6, *shape), [7, 3, 5, 3, 7, 5])
    assert data.names == ("3", "5", "7")
    assert data.images.shape == (3, 2, 4, 5, shape[2] if len(shape) == 3 else 1)
    assert data.images[:, :, 0, 0, 0].tolist() == [[1, 3], [2, 5], [0, 4]]
    assert FewShot(data, ways=2, shots=1, queries=1)


def test_the_first_examples_of_each_class_are_kept():
    labels = ["b", "a", "a", "b", "b"]
    data = readers.from_arrays(numbered(5, 2, 2), labels, examples_per_class=2)
    assert data.names == ("a", "b")
    assert data.images[:, :, 0, 0, 0].tolist() == [[1, 2], [0, 3]]


@pytest.mark.parametrize(
    ("images", "labels", "examples", "message"),
    [
        (numbered(3, 2, 2), "aab", 2, "=2 exceeds the 1 images of the smallest class, 'b'"),
        (numbered(0, 2, 2), "", None, "there are no images"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(images, labels, examples, message):
    with pytest.raises(ValueError, match=message):
        readers.from_arrays(images, list(labels), examples_per_class=examples)


def test_classes_of_unequal_size_keep_all_their_examples():
    data = readers.from_arrays(numbered(6, 2, 2), list("bacaca"))
    assert data.names == ("a", "b", "c")
    assert data.counts.tolist() == [3, 1, 2]
    found = [examples[:, 0, 0, 0].tolist() for examples in data.classes()]
    assert found == [[1, 3, 5], [0], [2, 4]]
    with pytest.raises(ValueError, match=r"from 1 \('b'\) to 3 images.*FewShot, or examples_per_c"):
        _ = data.images


def test_splits_share_no_class_and_are_decided_by_the_seed():
    data = readers.from_arrays(numbered(20, 2, 2), np.arange(20) % 10)
    train, validation, test = data.split(5, 2, 3)
    assert [len(part.names) for part in (train, validation, test)] == [5, 2, 3]
    assert sorted(train.names + validation.names + test.names) == sorted(data.names)
    for part in (train, validation, test):
        for name, images in zip(part.names, part.images, strict=True):
            assert images[:, 0, 0, 0].tolist() == [int(name), int(name) + 10]
    assert data.split(5, 5)[0].names == data.split(5, 5)[0].names
    assert data.split(5, 5)[0].names != data.split(5, 5, seed=1)[0].names


@pytest.mark.parametrize("sizes", [(5, 4), ()])
def test_splits_that_do_not_add_up_are_refused(sizes):
    data = readers.from_arrays(numbered(10, 2, 2), np.arange(10))
    with pytest.raises(ValueError, match="the sizes must add up to the 10 classes"):
        data.split(*sizes)


# --- Folders -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for name, values in (("dog", (30, 40)), ("cat", (10, 20))):
        (tmp_path / name).mkdir()
        for i, value in enumerate(values):
            Image.new("RGB", (8, 6), (value, 0, 0)).save(tmp_path / name / f"{i}.PNG")
    return tmp_path


def test_each_folder_is_a_class(folder):
    (folder / ".hidden").mkdir()
    (folder / "empty").mkdir()
    (folder / "README.txt").write_text("")
    (folder / "cat" / "notes.txt").write_text("")
    data = readers.from_folder(folder, size=4)
    assert data.names == ("cat", "dog")
    assert data.images.shape == (2, 2, 4, 4, 3)
    assert data.images[:, :, 0, 0, 0].tolist() == [[10, 20], [30, 40]]


def test_sizes_and_grey(folder):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "cat" / "0.PNG")
    assert (readers.from_folder(folder, size=(6, 8)).images[0, 0] == pixels).all()
    small = readers.from_folder(folder, size=(3, 5), grey=True).images
    assert small.shape == (2, 2, 3, 5, 1)
    resized = Image.fromarray(pixels).convert("L").resize((5, 3), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(small[0, 0, ..., 0], np.asarray(resized))


def test_files_are_what_a_viewer_shows(tmp_path):
    # A black bar on the left of white paper, in all the ways that programs save it.
    ink = np.full((20, 20), 255, np.uint8)
    ink[:, :5] = 0
    clear = np.zeros((20, 20, 4), np.uint8)
    clear[..., 3] = 255 - ink
    turned = Image.Exif()
    turned[0x0112] = 6  # shown turned by a quarter, clockwise
    (tmp_path / "bar").mkdir()
    Image.fromarray(clear).save(tmp_path / "bar" / "transparent.png")
    Image.fromarray(clear).convert("LA").save(tmp_path / "bar" / "transparent_grey.png")
    Image.fromarray(ink.astype(np.uint16) * 257).save(tmp_path / "bar" / "wide.png")
    Image.fromarray(np.rot90(ink)).save(tmp_path / "bar" / "turned.png", exif=turned)
    found = readers.from_folder(tmp_path, size=20, grey=True).images[0, ..., 0]
    assert len(found) == 4
    for image in found:
        np.testing.assert_array_equal(image, ink)


def test_folders_of_unequal_size(folder):
    (folder / "dog" / "1.PNG").unlink()
    data = readers.from_folder(folder, size=4)
    found = [examples[:, 0, 0, 0].tolist() for examples in data.classes()]
    assert (data.names, found) == (("cat", "dog"), [[10, 20], [30]])
    data = readers.from_folder(folder, size=4, examples_per_class=1)
    assert data.images[:, :, 0, 0, 0].tolist() == [[10], [30]]


def test_damaged_files_are_named(folder):
    for name in ("cat/1.PNG", "dog/0.PNG"):
        (folder / name).write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"2 image\(s\) .*cat/1.PNG \(.*dog/0.PNG \("):
        readers.from_folder(folder, size=4)


def test_folders_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        readers.from_folder(tmp_path / "nowhere", size=4)
    (tmp_path / "cat").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no folder with images"):
        readers.from_folder(tmp_path, size=4)


def test_pillow_not_installed(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r'needs Pillow.*pip install "metajax\[data\]"'):
        readers.from_folder(folder, size=4)


# --- TensorFlow Datasets -----------------------------------------------------------------------


@pytest.fixture
def mock(monkeypatch, tmp_path):
    """The real builders of TFDS, filled by it with noise."""
    tfds = pytest.importorskip("tensorflow_datasets")
    monkeypatch.setattr(sources.prepared, "prepare", lambda builder, title: None)
    with tfds.testing.mock_data(num_examples=200, data_dir=tmp_path):
        yield tfds, tmp_path


@pytest.mark.parametrize(
    ("name", "grey", "shape"), [("mnist", True, (9, 7, 1)), ("cifar10", False, (9, 7, 3))]
)
def test_tfds(mock, name, grey, shape):
    tfds, path = mock
    settings = {"size": (9, 7), "grey": grey, "data_dir": path}
    data = readers.from_tfds(name, ["train", "test"], examples_per_class=5, **settings)
    assert data.images.shape == (10, 5, *shape)
    assert data.names == tuple(tfds.builder(name, data_dir=path).info.features["label"].names)
    # The same image, found by hand.
    records = tfds.data_source(name, split="train", data_dir=path)
    record = next(record for record in records if record["label"] == 3)
    pixels = Image.fromarray(record["image"].squeeze())
    resized = np.asarray(pixels.resize((7, 9), Image.Resampling.LANCZOS)).reshape(shape)
    np.testing.assert_array_equal(data.images[3, 0], resized)


def test_classes_that_a_split_does_not_have_are_left_out(mock, monkeypatch):
    tfds, path = mock
    only = [{"image": np.zeros((28, 28, 1), np.uint8), "label": label} for label in (3, 3, 5, 5)]
    with monkeypatch.context() as patch:  # undone before the mock, or it would come back
        patch.setattr(tfds.core.DatasetBuilder, "as_data_source", lambda self, split: [only])
        data = readers.from_tfds("mnist", "test", size=4, grey=True, data_dir=path)
        assert data.names == ("3", "5")
        assert data.images.shape == (2, 2, 4, 4, 1)
        only.clear()
        with pytest.raises(ValueError, match="mnist has no images in 'test'"):
            readers.from_tfds("mnist", "test", size=4, data_dir=path)


def test_tfds_of_unequal_classes_and_unknown_features(mock):
    _, path = mock
    data = readers.from_tfds("mnist", "train", size=4, data_dir=path)
    assert data.counts.sum() == 200
    assert not data.equal
    with pytest.raises(ValueError, match=r"has no data set .no_such_set.; tfds\.list_bu"):
        readers.from_tfds("no_such_set", "train", size=4, data_dir=path)
    with pytest.raises(ValueError, match="mnist has no feature 'class'; it has 'image', 'label'"):
        readers.from_tfds("mnist", "train", size=4, data_dir=path, label="class")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image": "label"}, "image='label' must name images .* of mnist, they are ClassLabel"),
        ({"label": "image"}, "label='image' class labels of mnist"),
        ({"size": 2.5}, "size is the height and width .* got 2.5"),
        ({"examples_per_class": 0}, "examples_per_class must be a positive integer, got 0"),
        ({"split": []}, "mnist has no images in"),
    ],
)
def test_bad_arguments_of_tfds_are_refused(mock, settings, message):
    _, path = mock
    with pytest.raises(ValueError, match=message):
        readers.from_tfds(
            **{"name": "mnist", "split": "train", "size": 4, "data_dir": path, **settings}
        )


def test_tfds_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r'mnist needs tensorflow-datasets.*"metajax\[data\]"'):
        readers.from_tfds("mnist", "train", size=4)
