"""A small Mini-ImageNet, and what is right to read from it."""

import numpy as np

from metajax.data import mini_imagenet

SHORT = {"train": "train", "validation": "val", "test": "test"}
SPEC = mini_imagenet._Spec(
    {"train": ("n01", "n02", "n03"), "validation": ("n04", "n05"), "test": ("n06",)}, 4, 6
)


def pixels():
    """The images of each split `[classes, examples, size, size, 3]`."""
    generator = np.random.default_rng(0)
    return {
        split: generator.integers(0, 256, (len(names), 4, 6, 6, 3), np.uint8)
        for split, names in SPEC.classes.items()
    }


def load(root, cache):
    return mini_imagenet._load(SPEC, root, cache)


def assert_right(data):
    for split, images in pixels().items():
        found = getattr(data, split)
        assert found.images.dtype == np.uint8
        np.testing.assert_array_equal(found.images, images)
        assert found.names == SPEC.classes[split]
