"""Data for the launchers of image classification."""

import numpy as np
import pytest

from metajax.data import DATA_SETS, Images, Splits


@pytest.fixture
def random_images(monkeypatch):
    """Replaces both data sets by small random images."""
    rng = np.random.default_rng(0)

    def images(part, num_classes, shape):
        names = tuple(f"{part} {i}" for i in range(num_classes))
        return Images(rng.integers(0, 256, (num_classes, *shape), np.uint8), names)

    def splits(shape):
        return Splits(
            images("train", 6, shape), images("valid", 6, shape), images("test", 7, shape)
        )

    found = {"mini_imagenet": splits((40, 16, 16, 3)), "omniglot": splits((20, 16, 16, 1))}
    for name in found:
        replace_data(monkeypatch, found, name)
    return found


def replace_data(monkeypatch, splits, name):
    """Replaces a data set of the table by `splits[name]`."""

    def load(data_dir=None, *, split=None, resample=None):
        return splits[name]

    monkeypatch.setitem(DATA_SETS, name, DATA_SETS[name]._replace(load=load))
