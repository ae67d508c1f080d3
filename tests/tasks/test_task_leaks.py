"""The audit of episodes finds what was planted and nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.base import Episode
from metajax.data import Images
from metajax.tasks import FewShot, Sinusoid, audit_episodes


def noise(seed, classes=4, examples=5, size=6, channels=1):
    shape = (classes, examples, size, size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


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


def test_rotations_of_classes_of_unequal_size():
    images = noise(0, classes=2)
    both = np.concatenate([images, np.rot90(images, 3, axes=(2, 3))])
    both[[1, 3], 3:] = 0  # padding
    found = episodes(Images(both, "abcd", [5, 3, 5, 3]), rotations=True)
    assert found == {"tasks": 50, "shared_images": 0, "repeated_draws": 0, "rotated_classes": 50}
    images = noise(0)
    images[1, 3:] = images[0, 3:]  # most of class b, did the padding count
    found = episodes(Images(images, "abcd", [5, 3, 5, 5]), rotations=True)
    assert found["rotated_classes"] == 0


class Leaky(FewShot):
    """Draws the support among the queries too, and a class twice."""

    def draw(self, rng):
        draw = super().draw(rng)
        examples = draw.examples.at[1, -1].set(draw.examples[1, 0])
        return draw._replace(examples=examples)


SETTINGS = ("ways", "shots", "queries", "rotate")
jax.tree_util.register_dataclass(Leaky, ("images", "counts"), SETTINGS)


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
