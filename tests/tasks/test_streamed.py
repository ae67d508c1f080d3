"""Tasks from images on the host equal those on the device bit for bit, wherever they are drawn."""

import jax
import numpy as np
import pytest

from metajax.data import Images
from metajax.tasks import FewShot, StreamedFewShot, StreamedTasks, few_shot_tasks, meta_batch

SETTINGS = {"ways": 3, "shots": 1, "queries": 2, "rotate": True}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (7, 6, 5, 5, 1), np.uint8)


@pytest.fixture
def mapped(images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    return np.load(tmp_path / "images.npy", mmap_mode="r")


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("rotate", [False, True])
def test_episodes_are_those_of_the_device(images, mapped, rotate):
    settings = {**SETTINGS, "rotate": rotate}
    resident, streamed = FewShot(images, **settings), StreamedFewShot(mapped, **settings)
    draw = jax.jit(jax.vmap(streamed.draw))
    finish = jax.jit(jax.vmap(streamed.episode))
    keys = jax.random.split(jax.random.key(0), 50)
    fetched = streamed.fetch(draw(keys))
    assert fetched.images.dtype == np.uint8
    assert sum(x.nbytes for x in jax.tree.leaves(fetched.images)) == 50 * streamed.task_bytes
    assert_equal(finish(fetched), jax.jit(jax.vmap(resident.sample))(keys))


def test_classes_of_unequal_size_are_streamed_alike(mapped):
    given = Images(mapped, "abcdefg", [3, 6, 4, 5, 3, 6, 6])
    assert given.array is mapped
    resident, streamed = FewShot(given, **SETTINGS), StreamedFewShot(given, **SETTINGS)
    assert streamed.images is mapped
    keys = jax.random.split(jax.random.key(0), 50)
    fetched = streamed.fetch(jax.jit(jax.vmap(streamed.draw))(keys))
    expected = jax.jit(jax.vmap(resident.sample))(keys)
    assert_equal(jax.jit(jax.vmap(streamed.episode))(fetched), expected)
    with pytest.raises(ValueError, match=r"but class 'a' \(and 1 more\) has 3"):
        StreamedFewShot(given, **{**SETTINGS, "queries": 3})


def test_sampling_by_callback_is_the_same_under_jit_and_vmap(images, mapped):
    resident, streamed = FewShot(images, **SETTINGS), StreamedFewShot(mapped, **SETTINGS)
    key = jax.random.key(1)
    sample = jax.jit(lambda tasks, key: tasks.sample(key))
    assert_equal(sample(streamed, key), sample(resident, key))
    batch = jax.jit(meta_batch, static_argnums=1)
    assert_equal(batch(streamed, 8, key), batch(resident, 8, key))
    assert_equal(streamed.sample(key).query[1], sample(resident, key).query[1])


def test_a_static_pytree_that_fit_recognises(mapped, images):
    streamed = StreamedFewShot(mapped, **SETTINGS)
    assert not jax.tree.leaves(streamed)
    assert isinstance(streamed, StreamedTasks)
    assert not isinstance(FewShot(images, **SETTINGS), StreamedTasks)


def test_bad_arguments_are_refused_as_by_few_shot(images):
    with pytest.raises(ValueError, match="ways=9 different classes cannot be drawn from 7"):
        StreamedFewShot(images, **{**SETTINGS, "ways": 9})
    with pytest.raises(ValueError, match="must be uint8"):
        StreamedFewShot(images / 255, **SETTINGS)


def test_placed_on_the_device_where_they_fit(images):
    for given in (images, Images(images, "abcdefg")):
        for device_bytes, kind in (
            (None, FewShot),
            (images.nbytes, FewShot),
            (images.nbytes - 1, StreamedFewShot),
        ):
            assert type(few_shot_tasks(given, **SETTINGS, device_bytes=device_bytes)) is kind
