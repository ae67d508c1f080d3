"""The few-shot sampler: every sampled image is traced back to its class, example and rotation."""

import collections
import functools
import hashlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.data import Images
from metajax.tasks import FewShot, meta_batch

CLASSES, EXAMPLES, SIZE = 7, 5, 4

sample = jax.jit(FewShot.sample)
sample_batch = jax.jit(meta_batch, static_argnums=1)


@pytest.fixture(scope="module")
def images():
    shape = (CLASSES, EXAMPLES, SIZE, SIZE, 1)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def origins(images, x):
    """The (class, example, quarter turns) of each of `x [tasks, n, height, width, channels]`."""
    known = {}
    for c, e, k in itertools.product(*map(range, (*images.shape[:2], 4))):
        known.setdefault(np.rot90(images[c, e], k).tobytes(), (c, e, k))
    pixels = np.rint(np.asarray(x) * 255).astype(np.uint8)
    return np.array([[known[image.tobytes()] for image in task] for task in pixels])


def sample_origins(images, num_tasks=4200, seed=0, **settings):
    """Samples tasks; support and query origins `[tasks, ways, shots or queries, 3]`."""
    tasks = FewShot(images, **settings)
    batch = sample_batch(tasks, num_tasks, jax.random.key(seed))
    out = []
    for (x, y), num in ((batch.support, tasks.shots), (batch.query, tasks.queries)):
        np.testing.assert_array_equal(
            y, np.tile(np.repeat(np.arange(tasks.ways), num), (num_tasks, 1))
        )
        out.append(origins(images, x).reshape(num_tasks, tasks.ways, num, 3))
    return out


def assert_uniform(outcomes, num_outcomes):
    """Chi-squared over all outcomes, four standard deviations above its mean at most."""
    counts = collections.Counter(map(tuple, np.asarray(outcomes).tolist()))
    assert len(counts) == num_outcomes
    expected = len(outcomes) / num_outcomes
    chi2 = sum((count - expected) ** 2 / expected for count in counts.values())
    freedom = num_outcomes - 1
    assert chi2 < freedom + 4 * (2 * freedom) ** 0.5


def test_shapes_types_and_range(images):
    tasks = FewShot(images, ways=3, shots=2, queries=1)
    (x_support, y_support), (x_query, y_query) = sample(tasks, jax.random.key(0))
    assert x_support.shape == (6, SIZE, SIZE, 1)
    assert x_query.shape == (3, SIZE, SIZE, 1)
    assert x_support.dtype == x_query.dtype == jnp.float32
    assert y_support.dtype == y_query.dtype == jnp.int32
    np.testing.assert_array_equal(y_support, [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(y_query, [0, 1, 2])


def test_pixels_are_scaled_to_the_unit_interval():
    images = np.zeros((2, 2, 2, 2, 1), np.uint8)
    images[1] = 255
    tasks = FewShot(images, ways=2, shots=1, queries=0)
    x, _ = sample(tasks, jax.random.key(0)).support
    assert sorted(np.asarray(x).max(axis=(1, 2, 3))) == [0.0, 1.0]


def test_no_class_twice_and_one_class_per_label(images):
    support, query = sample_origins(images, ways=3, shots=2, queries=2)
    classes = np.concatenate([support, query], axis=2)[..., 0]
    assert (classes == classes[:, :, :1]).all()
    assert all(len(set(task)) == 3 for task in classes[:, :, 0].tolist())


def test_no_image_twice_in_support_and_query(images):
    support, query = sample_origins(images, ways=3, shots=2, queries=3)
    examples = np.concatenate([support, query], axis=2)[..., 1]
    assert (np.sort(examples, axis=2) == np.arange(EXAMPLES)).all()


def test_labels_are_assigned_to_classes_uniformly(images):
    support, _ = sample_origins(images, num_tasks=21_000, ways=3, shots=1, queries=1)
    assert_uniform(support[:, :, 0, 0], CLASSES * (CLASSES - 1) * (CLASSES - 2))


def test_examples_are_drawn_uniformly_and_independently_per_class(images):
    support, query = sample_origins(images, num_tasks=20_000, ways=2, shots=1, queries=1)
    pairs = np.concatenate([support, query], axis=2)[..., 1].reshape(-1, 4)
    assert_uniform(pairs, (EXAMPLES * (EXAMPLES - 1)) ** 2)


def test_images_keep_their_orientation_without_rotate(images):
    support, query = sample_origins(images, num_tasks=200, ways=3, shots=1, queries=1)
    assert (support[..., 2] == 0).all()
    assert (query[..., 2] == 0).all()


def test_rotations_are_quarter_turns_constant_within_class_and_task(images):
    support, query = sample_origins(
        images, num_tasks=20_000, ways=2, shots=1, queries=1, rotate=True
    )
    turns = np.concatenate([support, query], axis=2)[..., 2]
    assert (turns == turns[:, :, :1]).all()
    classes_and_turns = support[:, :, 0, [0, 2]].reshape(-1, 4)
    assert_uniform(classes_and_turns, CLASSES * (CLASSES - 1) * 4**2)


def test_color_images_rotate_in_the_plane():
    images = np.random.default_rng(1).integers(0, 256, (3, 2, 5, 5, 3), dtype=np.uint8)
    support, _ = sample_origins(images, num_tasks=50, ways=2, shots=1, queries=1, rotate=True)
    assert set(support[..., 2].ravel()) == {0, 1, 2, 3}


def test_all_classes_and_all_examples_may_be_used(images):
    support, query = sample_origins(
        images, num_tasks=10, ways=CLASSES, shots=EXAMPLES, queries=0, rotate=True
    )
    assert support.shape == (10, CLASSES, EXAMPLES, 3)
    assert query.shape == (10, CLASSES, 0, 3)


def test_images_need_not_be_square_without_rotate():
    tasks = FewShot(np.zeros((2, 2, 3, 5, 1), np.uint8), ways=2, shots=1, queries=1)
    assert sample(tasks, jax.random.key(0)).query[0].shape == (2, 3, 5, 1)


def test_a_key_decides_the_task(images):
    tasks = FewShot(images, ways=3, shots=1, queries=2, rotate=True)
    one, two = tasks.sample(jax.random.key(0)), sample(tasks, jax.random.key(0))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), one, two)
    assert not np.array_equal(one.query[0], sample(tasks, jax.random.key(1)).query[0])


def test_a_key_draws_the_tasks_that_it_always_drew(images):
    """What recorded results were trained and tested on."""
    tasks = FewShot(Images(images, "abcdefg"), ways=3, shots=1, queries=2, rotate=True)
    assert [np.asarray(x).tolist() for x in tasks.draw(jax.random.key(0))] == [
        [0, 6, 5],
        [[2, 3, 4], [4, 2, 1], [1, 0, 4]],
        [3, 2, 3],
    ]
    digest = hashlib.sha256()
    for x in jax.tree.leaves(sample_batch(tasks, 50, jax.random.key(1))):
        digest.update(np.rint(np.asarray(x) * 255).astype(np.int32).tobytes())
    assert digest.hexdigest()[:16] == "1d0a6b945b644cd8"


def test_one_compile_over_keys_and_data_sets(images):
    traces = []

    @jax.jit
    def traced(tasks, rng):
        traces.append(tasks)
        return meta_batch(tasks, 4, rng)

    for seed, data in enumerate((images, images, 255 - images)):
        traced(FewShot(data, ways=3, shots=1, queries=1, rotate=True), jax.random.key(seed))
    assert len(traces) == 1


def test_the_images_are_an_argument_and_no_constant():
    images = np.random.default_rng(2).integers(0, 256, (50, 10, 28, 28, 1), dtype=np.uint8)
    tasks = FewShot(images, ways=5, shots=1, queries=5, rotate=True)

    def lowered(function, *arguments):
        return jax.jit(function).lower(*arguments, jax.random.key(0)).as_text()

    passed = lowered(lambda tasks, rng: meta_batch(tasks, 4, rng), tasks)
    assert "%arg0: tensor<50x10x28x28x1xui8>" in passed
    assert len(passed) < images.size / 4
    # What the check would see otherwise.
    assert len(lowered(lambda rng: meta_batch(tasks, 4, rng))) > images.size


@pytest.mark.optimized
def test_only_the_images_of_the_tasks_are_copied():
    images = jax.ShapeDtypeStruct((1100, 20, 28, 28, 1), jnp.uint8)
    tasks = FewShot(images, ways=5, shots=1, queries=15, rotate=True)
    memory = sample_batch.lower(tasks, 32, jax.random.key(0)).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 1.1 * memory.output_size_in_bytes  # the data: twice that


def test_a_pytree_of_one_leaf_that_survives_transformations(images):
    tasks = FewShot(images, ways=3, shots=1, queries=1)
    (leaf,) = jax.tree.leaves(tasks)
    assert isinstance(leaf, jax.Array)
    assert leaf.dtype == jnp.uint8
    inverted = jax.tree.map(lambda x: 255 - x, tasks)
    np.testing.assert_array_equal(inverted.images, 255 - images)
    assert (inverted.ways, inverted.shots, inverted.queries) == (3, 1, 1)
    assert jax.tree.map(lambda _: None, tasks).images is None
    keys = jax.random.split(jax.random.key(0), 2)
    episodes = jax.vmap(FewShot.sample, in_axes=(None, 0))(tasks, keys)
    assert episodes.support[1].shape == (2, 3)


def test_data_sets_under_vmap(images):
    """Stacked as tasks or built of tracers: each draws what it draws alone."""
    sets = [
        FewShot(data, ways=3, shots=1, queries=1, rotate=True) for data in (images, 255 - images)
    ]
    keys = jax.random.split(jax.random.key(0), 2)
    alone = [sample(tasks, key) for tasks, key in zip(sets, keys, strict=True)]
    expected = jax.tree.map(lambda *x: jnp.stack(x), *alone)

    def built(images, key):
        return FewShot(images, ways=3, shots=1, queries=1, rotate=True).sample(key)

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *sets)
    for many in (
        jax.jit(jax.vmap(FewShot.sample))(stacked, keys),
        jax.jit(jax.vmap(built))(stacked.images, keys),
        jax.lax.map(lambda pair: pair[0].sample(pair[1]), (stacked, keys)),
    ):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), many, expected)


def test_tasks_cross_rules_of_differentiation(images):
    """Their tangents are of type float0."""

    @jax.custom_jvp
    def mean(tasks, scale):
        return scale * tasks.sample(jax.random.key(0)).support[0].mean()

    mean.defjvp(lambda primals, tangents: (mean(*primals), mean(primals[0], tangents[1])))
    tasks = FewShot(images, ways=3, shots=1, queries=1)
    np.testing.assert_allclose(jax.grad(mean, 1)(tasks, 2.0), mean(tasks, 1.0), rtol=1e-6)


def test_double_precision_changes_neither_types_nor_draws(images, float64):
    tasks = FewShot(images, ways=3, shots=2, queries=1)

    def drawn():
        return jax.jit(tasks.draw)(jax.random.key(0)), sample(tasks, jax.random.key(0))

    draw, episode = drawn()
    types = [x.dtype for x in jax.tree.leaves((draw, episode))]
    assert types == [jnp.int32] * 3 + [jnp.float32, jnp.int32] * 2
    jax.config.update("jax_enable_x64", False)
    single, expected = drawn()
    np.testing.assert_array_equal(draw.classes, single.classes)
    np.testing.assert_array_equal(draw.examples, single.examples)
    jax.tree.map(np.testing.assert_array_equal, episode, expected)


# --- Classes of unequal size -------------------------------------------------------------------

COUNTS = [5, 2, 3, 5, 2, 4, 3]


@pytest.fixture
def unequal(images):
    return Images(images, "abcdefg", COUNTS)


def test_no_example_beyond_its_class_is_drawn(unequal):
    tasks = FewShot(unequal, ways=4, shots=1, queries=1, rotate=True)
    draws = jax.jit(jax.vmap(tasks.draw))(jax.random.split(jax.random.key(0), 4200))
    classes, examples = np.asarray(draws.classes), np.asarray(draws.examples)
    assert (examples < np.asarray(COUNTS)[classes][..., None]).all()
    assert (examples[..., 0] != examples[..., 1]).all()
    for row, count in enumerate(COUNTS):  # every ordered pair of its examples, equally often
        assert_uniform(examples[classes == row], count * (count - 1))
    assert_uniform(classes[:, :1], CLASSES)


def test_the_images_are_those_that_are_drawn(unequal):
    tasks = FewShot(unequal, ways=3, shots=1, queries=1)
    key = jax.random.key(3)
    draw, episode = tasks.draw(key), sample(tasks, key)
    drawn = unequal.array[np.asarray(draw.classes)[:, None], np.asarray(draw.examples)] / 255
    np.testing.assert_allclose(episode.support[0], drawn[:, 0], rtol=1e-6)
    np.testing.assert_allclose(episode.query[0], drawn[:, 1], rtol=1e-6)


def test_equal_classes_need_no_counts(images):
    tasks = FewShot(Images(images, "abcdefg", [EXAMPLES] * CLASSES), ways=3, shots=1, queries=1)
    assert tasks.counts is None
    assert len(jax.tree.leaves(tasks)) == 1


def test_counts_are_a_leaf_that_survives_transformations(unequal, images):
    settings = {"ways": 3, "shots": 1, "queries": 1}
    tasks = FewShot(unequal, **settings)
    assert [x.dtype for x in jax.tree.leaves(tasks)] == [jnp.uint8, jnp.int32]
    other = FewShot(255 - images, **settings, counts=np.array(COUNTS[::-1]))
    keys = jax.random.split(jax.random.key(0), 2)
    alone = [sample(t, key) for t, key in zip((tasks, other), keys, strict=True)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), tasks, other)
    together = jax.jit(jax.vmap(FewShot.sample))(stacked, keys)
    expected = jax.tree.map(lambda *x: jnp.stack(x), *alone)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), together, expected)

    @jax.jit
    def built(images, counts, key):
        return FewShot(images, **settings, counts=counts).sample(key)

    again = built(other.images, other.counts, keys[1])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), again, alone[1])


def test_classes_that_are_too_small_are_named(unequal):
    message = r"class 'b' \(and 1 more\) has 2; .*with_at_least\(3\)"
    with pytest.raises(ValueError, match=message):
        FewShot(unequal, ways=3, shots=1, queries=2)
    tasks = FewShot(unequal.with_at_least(3), ways=3, shots=1, queries=2)
    assert tasks.images.shape[0] == 5


@pytest.mark.parametrize(
    ("shape", "dtype", "settings", "message"),
    [
        ((7, 5, 4, 4, 1), np.float32, {}, r"must be uint8 .* got float32.*undo any scaling"),
        ((7, 5, 4, 4), np.uint8, {}, r"\(7, 5, 4, 4\); grey images need a channel axis"),
        ((2, 5, 4, 4, 1), np.uint8, {}, "ways=3 different classes cannot be drawn from 2"),
        ((7, 2, 4, 4, 1), np.uint8, {}, r"shots \+ queries = 1 \+ 2 must not exceed the 2"),
        ((7, 5, 4, 6, 1), np.uint8, {"rotate": True}, "square images, got 4 x 6"),
    ],
)
@pytest.mark.parametrize("array", [np.zeros, jnp.zeros])
def test_bad_arguments_are_refused(array, shape, dtype, settings, message):
    with pytest.raises(ValueError, match=message):
        FewShot(array(shape, dtype), **{"ways": 3, "shots": 1, "queries": 2} | settings)
