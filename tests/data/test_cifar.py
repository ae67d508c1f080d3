"""CIFAR-FS and FC100: the published classes, the conversion on made-up images, and its failures."""

import hashlib
import sys
import types

import numpy as np
import pytest

from metajax.data import cifar, prepared

NAMES = sorted(name for part in cifar._splits("cifar_fs") for name in part)
EXAMPLES = 3


def image(name, example):
    """An image that tells its class and its place."""
    filled = np.zeros((32, 32, 3), np.uint8)
    filled[0, 0] = [*NAMES, "yeti"].index(name), example, 7
    return filled


class FakeBuilder:
    """What is used of a TFDS builder: classes in an order of its own, the last image in test."""

    data_path = "somewhere/cifar100/3.0.2"

    def __init__(self, names=NAMES, examples=EXAMPLES, is_prepared=True, image=image):
        self.names = names[::-1]
        self.info = types.SimpleNamespace(
            features={"label": types.SimpleNamespace(names=self.names)}
        )
        self.records = [
            [{"image": image(name, i), "label": self.names.index(name)} for name in names]
            for i in range(examples)
        ]
        self.is_prepared = lambda: is_prepared

    def as_data_source(self, split):
        assert split == ["train", "test"]
        return [r for records in self.records[:-1] for r in records], self.records[-1]


@pytest.fixture
def install(monkeypatch):
    """Puts a builder in the place of TFDS's."""

    def install(builder):
        fake = types.SimpleNamespace(builder=lambda name, data_dir: builder)
        monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)

    return install


def load(cache_dir, split="cifar_fs"):
    return cifar._load(EXAMPLES, None, split, cache_dir)


@pytest.mark.parametrize(("split", "sizes"), [("cifar_fs", (64, 16, 20)), ("fc100", (60, 20, 20))])
def test_rows_are_the_images_of_the_named_classes(install, split, sizes, tmp_path):
    install(FakeBuilder())
    data = load(tmp_path, split)
    for part, size in zip(data, sizes, strict=True):
        images, names = part.images, part.names
        assert images.shape == (size, EXAMPLES, 32, 32, 3)
        assert images.dtype == np.uint8
        assert names == tuple(sorted(names))
        for name, examples in zip(names, images, strict=True):
            expected = np.stack([image(name, i) for i in range(EXAMPLES)])
            np.testing.assert_array_equal(examples, expected)
    assert sorted(data.train.names + data.validation.names + data.test.names) == NAMES


def test_both_splits_are_converted_once(install, monkeypatch, tmp_path):
    install(FakeBuilder())
    load(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    load(tmp_path)
    load(tmp_path, "fc100")


def digest(names):
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


@pytest.mark.parametrize("split", ["cifar_fs", "fc100"])
def test_the_classes_are_the_published_ones(split):
    assert [digest(part) for part in cifar._splits(split)] == {
        "cifar_fs": ["e40c037757741c61", "e02b317c48c94270", "2a35675fcdddfebb"],
        "fc100": ["af96f5ba1e118915", "746350fa6cdcb340", "9df56bf75fee16f6"],
    }[split]


def test_the_features_of_the_tfds_data_set(monkeypatch, tmp_path):
    """The real builder of TFDS, filled by it with noise: 40 images of random classes."""
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = tfds.builder

    def named(*args, **kwargs):  # the names come with the prepared data
        found = builder(*args, **kwargs)
        found.info.features["label"].names = NAMES
        return found

    monkeypatch.setattr(tfds, "builder", named)
    monkeypatch.setattr(prepared, "prepare", lambda builder, title: None)
    with (
        tfds.testing.mock_data(num_examples=40, data_dir=tmp_path),
        pytest.raises(ValueError, match=r"holds \[0, .*\] images of each class and 0 unknown"),
    ):
        cifar.load(tmp_path, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        ({"names": NAMES[1:]}, r"\[0, 3\] images of each class and 0 unknown classes"),
        ({"names": [*NAMES, "yeti"]}, r"\[3\] images .* 1 unknown classes \['yeti'\]"),
        ({"examples": 4}, r"\[4\] images .* rather than 3 of each of the 100 known"),
        ({"image": lambda *_: np.zeros((28, 28, 3), np.uint8)}, r"uint8 \(28, 28, 3\), not uint8"),
        ({"image": lambda *_: np.zeros((32, 32, 3), np.float32)}, "float32"),
    ],
)
def test_other_data_are_refused(builder, message, install, tmp_path):
    install(FakeBuilder(**builder))
    with pytest.raises(ValueError, match=rf"{message}.*; delete .*prepare it again"):
        load(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_missing_data_are_named_with_a_remedy(install, monkeypatch, tmp_path):
    monkeypatch.setattr(prepared.importlib.util, "find_spec", lambda name: None)
    install(FakeBuilder(is_prepared=False))
    message = r"no prepared CIFAR-100 in somewhere/cifar100/3.0.2.*data_dir.*cifar100/3.0.2 of Tens"
    with pytest.raises(FileNotFoundError, match=message):
        load(tmp_path)


def test_tfds_not_installed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r'needs tensorflow-datasets.*"metajax\[data\]"'):
        cifar.load(cache_dir=tmp_path)
