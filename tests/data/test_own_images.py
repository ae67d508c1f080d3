"""A folder of class folders: the rule of its split, and what is refused."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from metajax import data


def make_classes(root, names, examples=2):
    rng = np.random.default_rng(0)
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(examples):
            pixels = rng.integers(0, 256, (9, 7, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")


def test_classes_are_split_by_the_hash_of_their_names(tmp_path):
    names = [f"class {i}" for i in range(25)]
    make_classes(tmp_path, names)
    splits = data.load("folder", tmp_path, size=8)
    assert [len(part) for part in splits] == [16, 4, 5]
    assert splits.train.image_shape == (8, 8, 3)
    ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    assert [name for part in splits for name in part.names] == ordered
    assert data.load("folder", tmp_path, size=5, grey=True).test.image_shape == (5, 5, 1)


def test_a_split_of_one_s_own_is_kept(tmp_path):
    for part, names in (("train", "abc"), ("validation", "d"), ("test", "ef")):
        make_classes(tmp_path / part, names)
    splits = data.load("folder", tmp_path, size=4)
    assert [part.names for part in splits] == [("a", "b", "c"), ("d",), ("e", "f")]


def test_few_classes(tmp_path):
    make_classes(tmp_path, "abc")
    assert [len(part) for part in data.load("folder", tmp_path, size=4)] == [1, 1, 1]
    (tmp_path / "c").rename(tmp_path / ".c")
    with pytest.raises(ValueError, match="has 2 classes"):
        data.load("folder", tmp_path, size=4)
    with pytest.raises(ValueError, match="name the folder"):
        data.load("folder")
    with pytest.raises(FileNotFoundError, match="is no folder"):
        data.load("folder", tmp_path / "nowhere")
