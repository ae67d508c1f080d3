"""The audit finds what was planted and nothing else; the tests of the real data use it too."""

import json

import numpy as np
import pytest

from metajax import data as readers
from metajax.data import Images, Splits
from metajax.data.leaks import changed_classes


def noise(seed, classes=4, examples=5, size=6, channels=1):
    shape = (classes, examples, size, size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def audit(data, **settings):
    """The audit of a dict of images and names."""
    return readers.audit({part: Images(*pair) for part, pair in data.items()}, **settings)


def splits():
    return {
        "train": (noise(0), ("a", "b", "c", "d")),
        "validation": (noise(1, 2), ("e", "f")),
        "test": (noise(2, 3), ("g", "h", "i")),
    }


def test_clean_data():
    found = audit(splits(), rotations=True)
    assert found["disjoint"] == {"classes": True, "images": True}
    assert found["shared_classes"] == found["identical_images"] == found["rotated_classes"] == []
    assert {name: (s["classes"], s["images"]) for name, s in found["splits"].items()} == {
        "train": (4, 20),
        "validation": (2, 10),
        "test": (3, 15),
    }


def test_classes_in_two_splits():
    data = splits()
    data["test"] = (data["test"][0], ("g", "b", "a"))
    found = audit(data)
    assert found["disjoint"] == {"classes": False, "images": True}
    assert found["shared_classes"] == [
        {"splits": ["train", "test"], "count": 2, "classes": ["a", "b"]}
    ]


def test_images_in_two_splits_and_twice_in_one():
    data = splits()
    train, validation, test = (images for images, _ in data.values())
    test[2, 4] = validation[0, 1] = train[1, 3]
    train[2, 0] = train[3, 1]
    test[0, 0] = test[0, 1] = test[0, 2]
    found = audit(data)
    assert found["disjoint"] == {"classes": True, "images": False}
    assert {tuple(f["splits"]): (f["count"], f["pairs"]) for f in found["identical_images"]} == {
        ("train", "validation"): (1, [[["b", 3], ["e", 1]]]),
        ("train", "test"): (1, [[["b", 3], ["i", 4]]]),
        ("validation", "test"): (1, [[["e", 1], ["i", 4]]]),
        ("train", "train"): (1, [[["c", 0], ["d", 1]]]),
        ("test", "test"): (3, [[["g", i], ["g", j]] for i, j in ((0, 1), (0, 2), (1, 2))]),
    }
    assert json.loads(json.dumps(found)) == found


def test_images_twice_within_a_split_leave_the_splits_disjoint():
    data = splits()
    data["train"][0][0, 0] = data["train"][0][3, 3]
    found = audit(data)
    assert len(found["identical_images"]) == 1
    assert found["disjoint"] == {"classes": True, "images": True}


def test_one_different_pixel_makes_another_image():
    data = splits()
    data["test"][0][0, 0] = data["train"][0][0, 0]
    assert len(audit(data)["identical_images"]) == 1
    data["test"][0][0, 0, 5, 5] ^= 1
    assert not audit(data)["identical_images"]


def test_no_more_is_named_than_asked_for():
    images, names = splits()["train"]
    (shared,) = (found := audit({"one": (images, names), "two": (images, names)}, cap=3))[
        "shared_classes"
    ]
    assert (shared["count"], shared["classes"]) == (4, ["a", "b", "c"])
    (identical,) = found["identical_images"]
    assert (identical["count"], len(identical["pairs"])) == (20, 3)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotated_classes(turns):
    data = splits()
    train, test = data["train"][0], data["test"][0]
    test[1] = np.rot90(train[0], turns, axes=(1, 2))
    train[3] = np.rot90(train[2], turns, axes=(1, 2))
    found = audit(data, rotations=True)
    assert found["identical_images"] == []
    assert found["rotated_classes"] == [
        {"splits": ["train", "test"], "count": 1, "pairs": [["a", "h"]]},
        {"splits": ["train", "train"], "count": 1, "pairs": [["c", "d"]]},
    ]
    assert "rotated_classes" not in audit(data)


def test_a_few_rotated_images_do_not_make_a_rotated_class():
    data = splits()
    for row, most in ((0, False), (1, True)):
        turned = np.rot90(data["train"][0][row], axes=(1, 2))
        data["test"][0][row, : 3 if most else 2] = turned[: 3 if most else 2]
    (found,) = audit(data, rotations=True)["rotated_classes"]
    assert found["pairs"] == [["b", "h"]]


def test_padding_is_not_looked_at():
    train, test = noise(0), noise(1)
    train[0, 2:] = test[1, 3:] = 7
    test[0, :2] = np.rot90(train[0, :2], axes=(1, 2))
    one = Images(train, "abcd", [2, 5, 5, 5])
    other = Images(test, "efgh", [5, 3, 5, 5])
    found = readers.audit({"train": one, "test": other}, rotations=True)
    assert found["identical_images"] == []
    assert [split["images"] for split in found["splits"].values()] == [17, 18]
    # More than half of the smaller of the two classes.
    assert [pairs["pairs"] for pairs in found["rotated_classes"]] == [[["a", "e"]]]


def test_splits_without_classes_are_passed_over():
    data = {part: Images(*pair) for part, pair in splits().items()}
    merged = Splits(**data).merged()
    assert len(merged.validation) == 0
    found = readers.audit(merged)
    assert list(found["splits"]) == ["train", "test"]
    joined = {"train": data["train"].joined(data["validation"]), "test": data["test"]}
    assert found == readers.audit(joined)


def test_changed_classes():
    data = splits()
    recorded = audit(data)
    again = {name: (images[::-1], names[::-1]) for name, (images, names) in data.items()}
    assert changed_classes(recorded, audit(again)) == []  # the order does not matter
    train, test = data["train"], data["test"]
    data["train"], data["test"] = (train[0], ("a", "b", "c", "i")), (test[0], ("g", "h", "d"))
    assert changed_classes(recorded, audit(data)) == ["test", "train"]
    del data["validation"]
    assert changed_classes(recorded, audit(data)) == ["test", "train", "validation"]
    assert changed_classes(json.loads(json.dumps(recorded)), recorded) == []
