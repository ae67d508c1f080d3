"""The audit finds what was planted and nothing else; the tests of the real data use it too."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.base import Episode
from metajax.tasks import FewShot, Sinusoid
from metajax.tasks.audit import audit, audit_episodes, changed_classes


def noise(seed, classes=4, examples=5, size=6, channels=1):
    shape = (classes, examples, size, size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


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


def test_names_must_fit():
    with pytest.raises(ValueError, match="train has 1 names for 4 classes"):
        audit({"train": (noise(0), "a")})


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


# --- Episodes ----------------------------------------------------------------------------------


def episodes(images, rotations=False, num_tasks=50, **settings):
    tasks = FewShot(images, **{"ways": 3, "shots": 1, "queries": 2, **settings})
    return audit_episodes(tasks, jax.random.key(0), num_tasks, rotations=rotations)


def test_clean_episodes():
    clean = {"tasks": 50, "shared_images": 0, "repeated_draws": 0}
    assert episodes(noise(0)) == clean
    assert episodes(noise(0), rotations=True, rotate=True) == {**clean, "rotated_classes": 0}


def test_copies_within_a_class_are_found_where_support_and_query_have_one_each():
    images = noise(0, classes=3, examples=3)
    images[1, 0] = images[1, 1]  # support and query split the copies in two draws of three
    assert episodes(images)["shared_images"] == pytest.approx(50 * 2 / 3, abs=12)
    images[:, :] = images[:, :1]
    assert episodes(images) == {"tasks": 50, "shared_images": 50, "repeated_draws": 0}


def test_rotations_of_a_class_in_one_task():
    images = noise(0, classes=2)
    rotated = np.concatenate([images, np.rot90(images, 3, axes=(2, 3))])
    found = episodes(rotated, rotations=True)
    assert found["rotated_classes"] == 50  # three of two pairs
    assert found["shared_images"] == found["repeated_draws"] == 0
    assert episodes(rotated, rotations=True, ways=1)["rotated_classes"] == 0
    # Two of four classes are one of the two pairs in a third of the tasks.
    found = episodes(rotated, rotations=True, ways=2, num_tasks=90)
    assert found["tasks"] == 90
    assert found["rotated_classes"] == pytest.approx(30, abs=15)


class Leaky(FewShot):
    """Draws the support among the queries too, and a class twice."""

    def draw(self, rng):
        draw = super().draw(rng)
        examples = draw.examples.at[1, -1].set(draw.examples[1, 0])
        return draw._replace(examples=examples)


jax.tree_util.register_dataclass(Leaky, ("images",), ("ways", "shots", "queries", "rotate"))


def test_a_sampler_that_repeats_itself_is_found():
    tasks = Leaky(noise(0), ways=3, shots=1, queries=2)
    found = audit_episodes(tasks, jax.random.key(0), 25)
    assert found == {"tasks": 25, "shared_images": 25, "repeated_draws": 25}


@functools.partial(jax.tree_util.register_dataclass, data_fields=(), meta_fields=())
class Constant:
    """Tasks that cannot be drawn; the query is the support."""

    def sample(self, rng):
        batch = (jnp.zeros((2, 3, 3, 1)), jnp.arange(2))
        return Episode(batch, batch)


def test_any_tasks_with_images():
    found = audit_episodes(Constant(), jax.random.key(0), 3)
    assert found == {"tasks": 3, "shared_images": 3}
    with pytest.raises(ValueError, match=r"rotations=True needs tasks .*FewShot.*Sinusoid"):
        audit_episodes(Sinusoid(), jax.random.key(0), 3, rotations=True)
