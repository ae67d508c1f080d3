"""Wrong types, ranks, sizes, signs and structures: one line each that names the cause."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import Episode
from metajax.data import Images
from metajax.tasks import (
    FewShot,
    Sinusoid,
    StreamedFewShot,
    as_tasks,
    audit_episodes,
    few_shot_tasks,
    meta_batch,
)

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 5, 4, 4, 1), np.uint8)


def refused(call, cases, errors=ValueError):
    """A test of a table of arguments and of what the message says of them."""

    @pytest.mark.parametrize(("arguments", "message"), cases)
    def test(arguments, message):
        with pytest.raises(errors, match=message) as caught:
            call(**arguments)
        assert "\n" not in str(caught.value)

    return test


# --- Distributions of tasks --------------------------------------------------------------------


SINUSOID = Sinusoid()


class Unregistered:
    def sample(self, rng):
        return Episode(rng, rng)


NO_TASKS = [
    ({"tasks": 3}, r"must be a function \(rng\) or an object with a method sample\(rng\).* got 3"),
    ({"tasks": None}, "an object with a method sample.* got None"),
    ({"tasks": "sinusoid"}, "an object with a method sample.* got 'sinusoid'"),
    ({"tasks": Sinusoid}, r"such as Sinusoid\(\) \(mind the parentheses\), got <function"),
    ({"tasks": lambda: None}, "an object with a method sample"),
    ({"tasks": lambda rng, num_tasks: None}, "an object with a method sample"),
]
NO_EPISODES = [
    ({"tasks": lambda rng: (rng, rng)}, r"must be a metajax.Episode\(.* returned tuple"),
    ({"tasks": lambda rng: None}, r"must be a metajax.Episode\(.* returned NoneType"),
]
NO_KEYS = [
    ({"rng": 0}, r"rng must be one key, such as jax.random.key\(0\), got int"),
    ({"rng": None}, "rng must be one key, .* got NoneType"),
    ({"rng": np.uint32(3)}, r"rng must be one key, .* got uint32\(\)"),
    ({"rng": jnp.zeros(2)}, r"rng must be one key, .* got float32\(2,\)"),
    ({"rng": jnp.zeros(2, jnp.int32)}, r"rng must be one key, .* got int32\(2,\)"),
    ({"rng": jnp.zeros(3, jnp.uint32)}, r"rng must be one key, .* got uint32\(3,\)"),
    ({"rng": jnp.zeros((4, 2), jnp.uint32)}, r"rng must be one key, .* got uint32\(4, 2\)"),
    ({"rng": jax.random.split(KEY, 4)}, r"rng must be one key, .* got key<fry>\(4,\)"),
]


def counts(name, zero=False):
    kind = "a non-negative" if zero else "a positive"
    wrong = [-1, 2.0, 2.5, True, "3", None, jnp.array(3)] + ([] if zero else [0])
    return [({name: value}, f"{name} .*must be {kind} integer, got ") for value in wrong]


test_meta_batch = refused(
    lambda tasks=SINUSOID, num_tasks=2, rng=KEY: meta_batch(tasks, num_tasks, rng),
    [*NO_TASKS, *NO_EPISODES, *NO_KEYS, *counts("num_tasks")],
)
test_meta_batch_of_a_traced_count = refused(
    lambda tasks: jax.jit(meta_batch)(tasks, 3, KEY),
    [({"tasks": Sinusoid()}, "num_tasks is static and must be a positive integer, got ")],
)
test_as_tasks = refused(
    as_tasks,
    [
        *NO_TASKS,
        (
            {"tasks": Unregistered()},
            "Unregistered must be a pytree .*register_dataclass, or with register_static",
        ),
    ],
)
test_sinusoid_keys = refused(Sinusoid().sample, NO_KEYS)

LOW_HIGH = r"must be a tuple \(low, high\) of finite numbers with low <= high, got "
test_sinusoid = refused(
    Sinusoid,
    [
        *counts("shots"),
        *counts("queries", zero=True),
        *(
            ({name: value}, f"{name} {LOW_HIGH}")
            for name in ("amplitude", "phase", "x_range", "support_range")
            for value in [
                (5.0, 0.1),
                [0.0, 1.0],
                (0.0,),
                (0.0, 1.0, 2.0),
                1.0,
                ("a", "b"),
                (0.0, None),
                (0.0, 1j),
                (np.nan, 1.0),
                (0.0, np.nan),
                (0.0, np.inf),
                (-np.inf, 0.0),
                (jnp.array(0.0), 1.0),
                (np.zeros(2), 1.0),
            ]
        ),
        *(({name: None}, f"{name} {LOW_HIGH}") for name in ("amplitude", "phase", "x_range")),
    ],
)
test_sinusoid_presets = refused(
    lambda preset=Sinusoid.finn2017, **settings: preset(**settings),
    [
        *counts("shots"),
        ({"preset": Sinusoid.nichol2018, "shots": 0}, "shots must be"),
        ({"preset": Sinusoid.nichol2018, "phase": (1.0, 0.0)}, f"phase {LOW_HIGH}"),
    ],
)


# --- Few-shot classification -------------------------------------------------------------------


def with_images(make):
    settings = {"ways": 3, "shots": 1, "queries": 2}
    return lambda images=IMAGES, **changes: make(images, **{**settings, **changes})


def shaped(*shape):
    return {"images": np.zeros(shape, np.uint8)}


NO_TASK_OF_THESE = [
    *counts("ways"),
    *counts("shots"),
    *counts("queries", zero=True),
    ({"ways": 8}, "ways=8 different classes cannot be drawn from 7 classes; lower ways"),
    ({"shots": 4}, r"shots \+ queries = 4 \+ 2 must not exceed the 5 examples .*; lower either"),
    ({"images": IMAGES / 255}, "images must be uint8 in 0..255, got float64.*undo any scaling"),
    ({"images": IMAGES > 0}, "images must be uint8 in 0..255, got bool"),
    (shaped(7, 5, 4, 4), r"shape \(7, 5, 4, 4\); grey images need a channel axis"),
    (shaped(2, 7, 5, 4, 4, 1), r"images must be \[classes, .* got shape \(2, 7, 5, 4, 4, 1\)"),
    (shaped(0, 5, 4, 4, 1), "cannot be drawn from 0 classes"),
    ({**shaped(7, 5, 4, 6, 1), "rotate": True}, "needs square images, got 4 x 6; crop them or"),
]
UNEQUAL = Images(IMAGES, "abcdefg", [5, 3, 4, 2, 5, 5, 5])
WRONG_COUNTS = [
    ({"images": UNEQUAL, "ways": 8}, "ways=8 different classes cannot be drawn from 7"),
    ({"images": UNEQUAL}, r"shots \+ queries = 1 \+ 2 .* class 'd' has 2; lower either, or remove"),
    ({"images": UNEQUAL, "queries": 5}, r"class 'a' \(and 6 more\) has 5; .*with_at_least\(6\)"),
    ({"images": UNEQUAL, "counts": UNEQUAL.counts}, "Images have their own counts"),
    ({"counts": UNEQUAL.counts}, "class 3 has 2; lower either"),
    ({"counts": UNEQUAL.counts[:6]}, r"one for each of the 7 classes, got int32 \(6,\)"),
    ({"counts": UNEQUAL.counts / 1}, r"counts must be an array of integers .* got float64 \(7,\)"),
    ({"counts": [5] * 7}, r"counts must be an array of integers .* got object \(\)"),
    ({"counts": np.full(7, 6)}, "counts must not exceed the 5 examples of the images' array"),
]
NO_ARRAYS = [
    ({"images": IMAGES.tolist()}, "images must be .* got list.*use np.asarray"),
    ({"images": None}, "images must be .* got NoneType"),
    ({"images": "images.npy"}, "images must be .* got str"),
]
test_few_shot = refused(with_images(FewShot), [*NO_TASK_OF_THESE, *WRONG_COUNTS, *NO_ARRAYS])
test_few_shot_keys = refused(with_images(FewShot)().sample, NO_KEYS)
test_few_shot_draws = refused(with_images(FewShot)().draw, NO_KEYS)
test_streamed = refused(
    with_images(StreamedFewShot),
    [
        *NO_TASK_OF_THESE,
        *WRONG_COUNTS,
        *NO_ARRAYS,
        ({"images": jnp.asarray(IMAGES)}, "a NumPy array to stay on the host.* or FewShot"),
    ],
)
test_streamed_keys = refused(with_images(StreamedFewShot)().sample, NO_KEYS)
test_place = refused(
    with_images(few_shot_tasks),
    [
        *NO_TASK_OF_THESE,
        *NO_ARRAYS,
        *(({"device_bytes": value}, "device_bytes must be a non-neg") for value in (-1, 1e9, "8")),
    ],
)
test_placed_on_the_host = refused(
    functools.partial(with_images(few_shot_tasks), device_bytes=0), [*NO_TASK_OF_THESE, *NO_ARRAYS]
)


def stacked_without_vmap(change):
    tasks = jax.tree.map(change, with_images(FewShot)())
    return tasks.sample(KEY)


test_few_shot_rebuilt_by_jax = refused(
    stacked_without_vmap,
    [
        ({"change": lambda x: jnp.stack([x, x])}, r"got shape \(2, 7, 5, 4, 4, 1\)"),
        ({"change": lambda x: x / 255}, "images must be uint8 in 0..255, got float32"),
        ({"change": lambda x: x[:2]}, "ways=3 different classes cannot be drawn from 2"),
        ({"change": lambda x: None}, "images must be uint8 in 0..255, got NoneType"),
    ],
)


# --- The audit of episodes ---------------------------------------------------------------------


test_audit_episodes = refused(
    lambda tasks=SINUSOID, rng=KEY, num_tasks=2: audit_episodes(tasks, rng, num_tasks),
    [
        *NO_TASKS,
        *NO_EPISODES,
        *NO_KEYS,
        *counts("num_tasks"),
        ({"tasks": Unregistered()}, "Unregistered must be a pytree .*register_dataclass"),
        (
            {"tasks": lambda rng: Episode(jnp.zeros((5, 2)), jnp.zeros((5, 2)))},
            r"with batches \(images, labels\), such as FewShot",
        ),
        (
            {"tasks": lambda rng: Episode({"x": jnp.zeros(1), "y": jnp.zeros(1)}, ())},
            r"with batches \(images, labels\), such as FewShot",
        ),
    ],
)
