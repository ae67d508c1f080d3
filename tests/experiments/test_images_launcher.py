"""The launcher of one's own images: unequal classes, a stated split, an audit."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import baselines, images
from experiments.settings import UsageError
from tests.experiments.launching import SMALL, launch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve classes of 7 to 9 images, and one of 2."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for index in range(13):
        name = root / f"class {index}"
        name.mkdir()
        for i in range(7 + index % 3 if index else 2):
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(name / f"{i}.png")
    return root


FEW = [
    "--size=6",
    "--network=mlp",
    "--ways=2",
    "--queries=4",
    "--eval_queries=4",
    "--validation_tasks=2",
]


def test_a_folder_of_unequal_classes_trains(tmp_path, folder, capsys):
    flags = [*FEW, "--algorithm=fomaml", "--num_steps=1", f"--data_dir={folder}"]
    launch(images, *SMALL, *flags, f"--workdir={tmp_path}")
    assert "left out, for less than 5 images: 1 classes" in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert len(result["evaluation"]["accuracy"]["transductive"]["mean"]) == 3
    assert result["audit"]["disjoint"] == {"classes": True, "images": True}


def test_a_baseline_draws_no_padding():
    array = np.zeros((2, 5, 1, 1, 1), np.uint8)
    array[0, 2:] = 255
    tasks = baselines.Classification(jnp.asarray(array), jnp.asarray([2, 5]), 200)
    pixels, labels = tasks.sample(jax.random.key(0)).query
    assert not pixels.any()
    assert set(labels.tolist()) == {0, 1}


def test_a_baseline_learns_from_a_folder_of_unequal_classes(tmp_path, folder):
    few = [flag for flag in FEW if "--queries" not in flag]
    words = [*few, "--algorithm=nearest_neighbour", f"--data_dir={folder}"]
    small = [flag for flag in SMALL if "num_eval_steps" not in flag and "validation_s" not in flag]
    launch(images, *words, *small, f"--workdir={tmp_path / 'run'}")
    (mean,) = json.loads((tmp_path / "run" / "result.json").read_text())["evaluation"]["accuracy"][
        "transductive"
    ]["mean"]
    assert 0 <= mean <= 1


def test_a_folder_must_be_named_and_have_enough(tmp_path, folder):
    with pytest.raises(UsageError, match="name the folder of your images"):
        launch(images, f"--workdir={tmp_path / 'a'}")
    with pytest.raises(UsageError, match="ways=9 different classes cannot be drawn"):
        launch(images, *FEW, "--ways=9", f"--data_dir={folder}", f"--workdir={tmp_path / 'b'}")
