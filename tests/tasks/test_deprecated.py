"""Names of before `metajax.data`: they work as they did, and say where their successors are."""

import importlib
import json

import jax
import numpy as np
import pytest

from metajax import data
from metajax.data import Images, Splits
from metajax.tasks import (
    FewShot,
    audit,
    cifar,
    deprecated,
    few_shot,
    mini_imagenet,
    omniglot,
    place,
    sources,
)

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 5, 4, 4, 1), np.uint8)
SPLITS = Splits(*Images(IMAGES, "abcdefg").split(4, 2, 1))
FLAT, LABELS = IMAGES.reshape(-1, 4, 4, 1), np.repeat([*"abcdefg"], 5)


def old(function, *args, **kwargs):
    """What it returns, and where its warning says to go; it points at this line."""
    with pytest.warns(DeprecationWarning, match="is deprecated and goes with") as caught:
        found = function(*args, **kwargs)
    (warning,) = caught
    assert warning.filename == __file__
    return found, str(warning.message).rpartition("use ")[2]


def exists(name):
    module, _, attribute = name.rpartition(".")
    return hasattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize(
    ("module", "kind"),
    [(omniglot, "Omniglot"), (cifar, "CIFAR"), (mini_imagenet, "MiniImageNet")],
)
def test_data_sets_as_arrays_and_names(module, kind, tmp_path):
    name = module.__name__.rpartition(".")[2]
    with pytest.raises(FileNotFoundError, match="names a folder that does not exist"):
        old(module.load, tmp_path / "nowhere")
    found, new = old(deprecated.named_splits(name, lambda *args, **kwargs: SPLITS))
    assert new == f"metajax.data.{name}.load"
    assert exists(new)
    assert found._fields == getattr(module, kind)._fields
    for part in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(found, part), getattr(SPLITS, part).array)
        assert getattr(found, f"{part}_names") == getattr(SPLITS, part).names


def test_words():
    found = old(mini_imagenet.words, "n01532829")
    assert found == (
        "house finch, linnet, Carpodacus mexicanus",
        "metajax.data.mini_imagenet.words",
    )
    assert exists(found[1])


@pytest.mark.parametrize("module", [few_shot, sources])
def test_arrays_of_ones_own(module):
    found, new = old(module.from_arrays, FLAT, LABELS)
    assert new == "metajax.data.from_arrays"
    images, names = found
    np.testing.assert_array_equal(images, IMAGES)
    assert names == tuple("abcdefg")
    one, other = found.split(4, 3, seed=2)
    expected, _ = data.from_arrays(FLAT, LABELS).split(4, 3, seed=2)
    np.testing.assert_array_equal(one.images, expected.array)
    assert one.names == expected.names
    assert isinstance(other, module.ImageClasses)
    with (
        pytest.warns(DeprecationWarning, match="use metajax.data.from_arrays"),
        pytest.raises(ValueError, match=r"from 4 \('g'\) to 5 images.*examples_per_class=4"),
    ):
        module.from_arrays(FLAT[:-1], LABELS[:-1])


def test_folders_and_tfds(tmp_path):
    for name in ("from_folder", "from_tfds"):
        pytest.importorskip("PIL")
        pytest.importorskip("tensorflow_datasets")
        arguments = {"split": "train", "data_dir": tmp_path / "x"} if name == "from_tfds" else {}
        with (
            pytest.warns(DeprecationWarning, match=f"use metajax.data.{name}$"),
            pytest.raises(FileNotFoundError),
        ):
            getattr(few_shot, name)(str(tmp_path / "nowhere"), size=4, **arguments)


def test_audits():
    pairs = {part: (images.array, images.names) for part, images in SPLITS._asdict().items()}
    report, new = old(audit.audit, pairs, rotations=True)
    assert new == "metajax.data.audit"
    assert report == data.audit(SPLITS, rotations=True)
    recorded = json.loads(json.dumps(report))
    assert old(audit.changed_classes, recorded, report) == ([], "metajax.data.changed_classes")
    tasks = FewShot(IMAGES, ways=3, shots=1, queries=2)
    found, new = old(audit.audit_episodes, tasks, jax.random.key(0), 20)
    assert found == {"tasks": 20, "shared_images": 0, "repeated_draws": 0}
    assert exists(new)


def test_place():
    tasks, new = old(place, IMAGES, ways=3, shots=1, queries=2)
    assert isinstance(tasks, FewShot)
    assert new == "metajax.tasks.few_shot_tasks"
    assert exists(new)
