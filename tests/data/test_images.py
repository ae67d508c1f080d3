"""What protocols do to images by class, against NumPy by hand."""

import dataclasses

import numpy as np
import pytest

from metajax import data
from metajax.data import DataSet, Images, Splits


def noise(seed, classes, examples=3, size=4, channels=1):
    shape = (classes, examples, size, size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def splits():
    parts = ((0, "abcd", 3), (1, "ef", 3), (2, "ghi", 3))
    return Splits(*(Images(noise(seed, len(names), n), names) for seed, names, n in parts))


@pytest.fixture
def unequal():
    return Images(noise(3, 4, 5), ("w", "x", "y", "z"), [5, 2, 1, 4])


def assert_same(images, array, names, counts=None):
    assert images.array.dtype == np.uint8
    np.testing.assert_array_equal(images.array, array)
    assert images.names == tuple(names)
    counts = [array.shape[1]] * len(array) if counts is None else counts
    np.testing.assert_array_equal(images.counts, counts)


def test_inverted(splits, unequal):
    for part, inverted in zip(splits, splits.inverted(), strict=True):
        assert_same(inverted, np.subtract(255, part.array, dtype=np.uint8), part.names)
    assert_same(unequal.inverted(), 255 - unequal.array, unequal.names, unequal.counts)
    assert_same(unequal.inverted().inverted(), unequal.array, unequal.names, unequal.counts)


def test_merged(splits):
    merged = splits.merged()
    array = np.concatenate([splits.train.array, splits.validation.array])
    assert_same(merged.train, array, "abcdef")
    assert_same(merged.validation, splits.validation.array[:0], ())
    assert merged.test is splits.test
    assert repr(merged.validation) == "Images(0 classes, 0 examples each, 4 x 4 x 1)"


def quarter_turn(image, turns):
    """Counterclockwise, pixel by pixel."""
    for _ in range(turns):
        size = len(image)
        image = [[image[x][size - 1 - y] for x in range(size)] for y in range(size)]
    return image


def test_quarter_turns_are_classes_of_their_own(splits):
    train = splits.train
    turned = splits.with_quarter_turns()
    assert turned.validation is splits.validation
    assert turned.test is splits.test
    names = [f"{name} turned by {angle}" for angle in (0, 90, 180, 270) for name in "abcd"]
    rotated = [np.rot90(train.array, k, axes=(2, 3)) for k in range(4)]
    assert_same(turned.train, np.concatenate(rotated), names)
    for row in range(16):
        for column in range(3):
            image = train.array[row % 4, column, ..., 0].tolist()
            found = turned.train.array[row, column, ..., 0].tolist()
            assert found == quarter_turn(image, row // 4)


def test_quarter_turns_of_classes_of_unequal_size(unequal):
    assert unequal.with_quarter_turns().counts.tolist() == [5, 2, 1, 4] * 4


def test_a_protocol_of_all_three_at_once(splits):
    """Train on train and validation, ink dark, quarter turns as classes."""
    found = splits.merged().inverted().with_quarter_turns()
    train = 255 - np.concatenate([splits.train.array, splits.validation.array])
    train = np.concatenate([np.rot90(train, turns, axes=(2, 3)) for turns in range(4)])
    np.testing.assert_array_equal(found.train.array, train)
    np.testing.assert_array_equal(found.test.array, 255 - splits.test.array)
    assert found.train.names[5:7] == ("f turned by 0", "a turned by 90")


def test_splits_are_dealt_out_by_the_permutation_of_the_seed(unequal):
    order = np.random.default_rng(5).permutation(4)
    parts = unequal.split(1, 3, seed=5)
    for part, rows in zip(parts, (order[:1], order[1:]), strict=True):
        names = [unequal.names[row] for row in rows]
        assert_same(part, unequal.array[rows], names, unequal.counts[rows])


def test_joined_pads_the_shorter_array(unequal):
    short = Images(noise(4, 2, 3), ("a", "b"))
    joined = short.joined(unequal)
    assert joined.names == ("a", "b", "w", "x", "y", "z")
    assert joined.counts.tolist() == [3, 3, 5, 2, 1, 4]
    for found, examples in zip(
        joined.classes(), [*short.classes(), *unequal.classes()], strict=True
    ):
        np.testing.assert_array_equal(found, examples)
    assert joined.array.shape[1] == 5


def test_classes_of_any_sizes_are_put_together_and_taken_apart(unequal):
    classes = dict(zip(unequal.names, unequal.classes(), strict=True))
    assert [len(examples) for examples in classes.values()] == [5, 2, 1, 4]
    again = Images.from_classes(classes)
    assert again.array.shape == (4, 5, 4, 4, 1)
    for found, examples in zip(again.classes(), classes.values(), strict=True):
        np.testing.assert_array_equal(found, examples)
    assert not again.array[1, 2:].any()  # padding
    dense = Images.from_classes({"a": classes["w"], "b": classes["w"]})
    assert dense.equal
    assert dense.images is dense.array


def test_classes_that_are_large_enough(unequal):
    assert unequal.with_at_least(4).names == ("w", "z")
    assert unequal.with_at_least(5).counts.tolist() == [5]
    assert len(unequal.with_at_least(6)) == 0


def test_what_it_says_of_itself(splits, unequal):
    assert repr(unequal) == "Images(4 classes, 1 to 5 examples, 4 x 4 x 1)"
    assert repr(splits.test) == "Images(3 classes, 3 examples each, 4 x 4 x 1)"
    assert len(unequal) == 4
    assert unequal.image_shape == (4, 4, 1)
    assert not unequal.equal
    assert splits.test.equal


def test_an_array_of_equal_classes_is_not_copied():
    array = noise(0, 4)
    images = Images(array, "abcd")
    assert images.images is array
    assert images.counts.tolist() == [3] * 4


def test_images_do_not_change():
    images = Images(noise(0, 4), "abcd")
    with pytest.raises(dataclasses.FrozenInstanceError):
        images.array = images.array[:2]
    before = images.array.copy()
    images.inverted(), images.with_quarter_turns(), images.split(2, 2)
    np.testing.assert_array_equal(images.array, before)


# --- The table ---------------------------------------------------------------------------------


def test_a_data_set_is_one_line_of_the_table(monkeypatch, splits, unequal):
    def read(data_dir=None, *, kind="small", cache_dir=None):
        return splits._replace(train=unequal, test=(data_dir, kind))

    monkeypatch.setitem(data.DATA_SETS, "tiered", DataSet("Tiered", read))
    assert data.DATA_SETS["tiered"].settings == ("kind", "cache_dir")
    assert data.load("tiered").train is unequal
    assert data.load("tiered", "somewhere", kind="large").test == ("somewhere", "large")
    with pytest.raises(ValueError, match="tiered has no setting 'kid'; it has kind, cache_dir"):
        data.load("tiered", kid="large")


def test_the_table_names_every_data_set():
    settings = {name: (known.title, known.settings) for name, known in data.DATA_SETS.items()}
    assert settings == {
        "omniglot": ("Omniglot", ("split", "size", "resample", "cache_dir")),
        "mini_imagenet": ("Mini-ImageNet", ("cache_dir",)),
        "cifar_fs": ("CIFAR-FS", ("split", "cache_dir")),
        "folder": ("the folder", ("size", "grey")),
        "fc100": ("FC100", ("split", "cache_dir")),
    }
