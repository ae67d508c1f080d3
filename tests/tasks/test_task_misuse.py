"""Wrong types, ranks, sizes, signs and structures: one line each that names the cause."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import Episode
from metajax.tasks import (
    FewShot,
    Sinusoid,
    StreamedFewShot,
    as_tasks,
    cifar,
    few_shot,
    meta_batch,
    mini_imagenet,
    omniglot,
    place,
)
from metajax.tasks.audit import audit, audit_episodes, changed_classes

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 5, 4, 4, 1), np.uint8)
NAMES = "abcdefg"


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
            "Unregistered must be a pytree .*register_dataclass, or with register_static where",
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
    ({"images": IMAGES / 255}, "images must be uint8 in 0..255, got float64.*undo a scaling"),
    ({"images": IMAGES > 0}, "images must be uint8 in 0..255, got bool"),
    (shaped(7, 5, 4, 4), r"shape \(7, 5, 4, 4\); grey images need a channel axis"),
    (shaped(2, 7, 5, 4, 4, 1), r"images must be \[classes, .* got shape \(2, 7, 5, 4, 4, 1\)"),
    (shaped(0, 5, 4, 4, 1), "cannot be drawn from 0 classes"),
    ({**shaped(7, 5, 4, 6, 1), "rotate": True}, "needs square images, got 4 x 6; crop them or"),
]
NO_ARRAYS = [
    ({"images": IMAGES.tolist()}, "images must be .* got list.*use np.asarray"),
    ({"images": None}, "images must be .* got NoneType"),
    ({"images": "images.npy"}, "images must be .* got str"),
]
test_few_shot = refused(with_images(FewShot), [*NO_TASK_OF_THESE, *NO_ARRAYS])
test_few_shot_keys = refused(with_images(FewShot)().sample, NO_KEYS)
test_few_shot_draws = refused(with_images(FewShot)().draw, NO_KEYS)
test_streamed = refused(
    with_images(StreamedFewShot),
    [
        *NO_TASK_OF_THESE,
        *NO_ARRAYS,
        ({"images": jnp.asarray(IMAGES)}, "an array of NumPy to stay on the host.* or FewShot"),
    ],
)
test_streamed_keys = refused(with_images(StreamedFewShot)().sample, NO_KEYS)
test_place = refused(
    with_images(place),
    [
        *NO_TASK_OF_THESE,
        *NO_ARRAYS,
        *(({"device_bytes": value}, "device_bytes must be a non-neg") for value in (-1, 1e9, "8")),
    ],
)
test_placed_on_the_host = refused(
    functools.partial(with_images(place), device_bytes=0), [*NO_TASK_OF_THESE, *NO_ARRAYS]
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


# --- Images of one's own -----------------------------------------------------------------------


def from_arrays(images=IMAGES[:6, 0], labels=(0, 0, 1, 1, 2, 2), **settings):
    return few_shot.from_arrays(images, labels, **settings)


test_from_arrays = refused(
    from_arrays,
    [
        ({"images": IMAGES[:6, 0] / 255}, "images must be uint8 in 0..255, got float64.*undo"),
        ({"images": IMAGES[:6, 0] > 0}, "images must be uint8 in 0..255, got bool"),
        ({"images": None}, "images must be uint8 in 0..255, got object"),
        ({"images": IMAGES[:6, 0, 0, 0]}, r"must be \[n, height, width\] or .* shape \(6, 1\)"),
        ({"images": IMAGES[:6]}, r"\[n, height, width, channels\], got shape \(6, 5, 4, 4, 1\)"),
        ({"labels": "aabbcc"}, r"labels of shape \(\) for 6 images"),
        ({"labels": [0, 1]}, r"each image needs one label, got labels of shape \(2,\) for 6"),
        ({"labels": np.eye(6)}, r"labels of shape \(6, 6\) for 6 images"),
        ({"labels": [0.0, 0, 1, 1, 2, 2]}, r"labels must be integers or strings, got float64"),
        ({"labels": [np.nan] * 6}, r"labels must be integers or strings, got float64; convert"),
        ({"labels": [None, *"abbcc"]}, "labels must be integers or strings, got object"),
        ({"labels": [b"a"] * 6}, r"labels must be integers or strings, got \|S1; .*astype\(str\)"),
        (
            {"labels": [0, 1, 1, 1, 1, 1]},
            r"from 1 \('0'\) to 5 images; pass examples_per_class=1 to keep .* or leave",
        ),
        ({"examples_per_class": 3}, "examples_per_class=3 exceeds the 2 images .* '0'; lower it"),
        *(case for case in counts("examples_per_class") if None not in case[0].values()),
        ({"images": [IMAGES[0, 0], IMAGES[0, 0, :3]] * 3}, "inhomogeneous shape"),
        ({"labels": [[0], [0, 1], 1, 1, 2, 2]}, "inhomogeneous shape"),
    ],
)
test_split = refused(
    lambda sizes: from_arrays().split(*sizes),
    [
        ({"sizes": (2, 2)}, r"must add up to the 3 classes, got 2 \+ 2 = 4"),
        ({"sizes": ()}, "must add up to the 3 classes, got  = 0"),
        ({"sizes": [(2, 1)]}, r"one by one, and each must be a positive integer, got \(2, 1\)"),
        ({"sizes": (3, 0)}, "each must be a positive integer, got 0"),
        ({"sizes": (4, -1)}, "each must be a positive integer, got -1"),
        ({"sizes": (1.5, 1.5)}, "each must be a positive integer, got 1.5"),
        ({"sizes": (True, 2)}, "each must be a positive integer, got True"),
    ],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    image = pytest.importorskip("PIL.Image")
    path = tmp_path_factory.mktemp("classes")
    for name in ("cat", "dog"):
        (path / name).mkdir()
        image.new("L", (4, 4)).save(path / name / "0.png")
    return path


SIZES = [0, -1, 2.5, True, "4", None, (4,), (4, 4, 4), (4, 0), (4, 4.0)]


@pytest.mark.parametrize("size", SIZES)
def test_sizes_of_a_folder(size, folder):
    with pytest.raises(ValueError, match="size is the height and width in pixels; each must be a"):
        few_shot.from_folder(folder, size=size)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "1"])
def test_examples_of_a_folder(value, folder):
    with pytest.raises(ValueError, match="examples_per_class must be a positive integer, got "):
        few_shot.from_folder(folder, size=4, examples_per_class=value)


def test_paths_of_folders(folder):
    with pytest.raises(TypeError, match=r"expected str, bytes or os.PathLike object, not int"):
        few_shot.from_folder(3, size=4)
    with pytest.raises(FileNotFoundError, match=r"cat/0.png is no folder"):
        few_shot.from_folder(folder / "cat" / "0.png", size=4)


def test_numpy_integers_are_sizes(folder):
    for size in (np.int64(4), (np.int64(4), 4), [4, 4]):
        assert few_shot.from_folder(folder, size=size).images.shape == (2, 1, 4, 4, 3)


# --- The data sets -----------------------------------------------------------------------------

test_omniglot = refused(
    omniglot.load,
    [
        *(({"size": size}, "size must be a positive integer, got ") for size in SIZES),
        ({"split": "lake"}, r"split must be one of \('finn', 'vinyals'\), got 'lake'"),
        ({"split": ["finn"]}, "split must be one of .* got "),
        ({"resample": "cubic"}, r"resample must be one of \('lanczos', 'nearest'\), got 'cubic'"),
    ],
)
test_cifar = refused(
    cifar.load,
    [
        ({"split": "x"}, r"split must be one of \('cifar_fs', 'fc100'\), got 'x'"),
        ({"split": None}, "split must be one of .* got None"),
    ],
)
test_words = refused(
    mini_imagenet.words,
    [
        ({"name": "n0"}, "'n0' is no class of Mini-ImageNet, such as 'n01532829'"),
        ({"name": 3}, "3 is no class of Mini-ImageNet"),
    ],
    KeyError,
)
test_paths = refused(
    lambda load, **arguments: load(**arguments),
    [
        ({"load": load, **arguments}, "expected str, bytes or os.PathLike object, not int")
        for load, arguments in [
            (omniglot.load, {"cache_dir": 3}),
            (cifar.load, {"cache_dir": 3}),
            (mini_imagenet.load, {"cache_dir": 3}),
            (mini_imagenet.load, {"data_dir": 3}),
        ]
    ],
    TypeError,
)


# --- The audit ---------------------------------------------------------------------------------

A_DICT = r'splits must be a dict of images and class names, such as \{"train": \(images, names\)\}'
test_audit = refused(
    audit,
    [
        ({"splits": None}, A_DICT),
        ({"splits": [IMAGES]}, A_DICT),
        ({"splits": {"train": IMAGES}}, A_DICT),
        ({"splits": {"train": (IMAGES, None)}}, A_DICT),
        ({"splits": {"train": (IMAGES, NAMES, 0)}}, A_DICT),
        ({"splits": {}}, r"the splits must hold images of one size, got \{\}"),
        (
            {"splits": {"train": (IMAGES, NAMES), "test": (IMAGES[:, :, :3], NAMES)}},
            r"images of one size, got \{'train': \(4, 4, 1\), 'test': \(3, 4, 1\)\}",
        ),
        (
            {"splits": {"train": (IMAGES, NAMES), "test": (IMAGES / 255, NAMES)}},
            r"images of test must be uint8 \[classes, .* got float64 \(7, 5, 4, 4, 1\)",
        ),
        ({"splits": {"train": (IMAGES[..., 0], NAMES)}}, r"got uint8 \(7, 5, 4, 4\)"),
        ({"splits": {"train": (IMAGES.tolist(), NAMES)}}, "images of train must be .* got int64"),
        ({"splits": {"train": (IMAGES, "abc")}}, "train has 3 names for 7 classes"),
        ({"splits": {"train": (IMAGES, range(7))}}, "names of train must be strings; use map"),
        *(
            ({"splits": {"train": (IMAGES, NAMES)}, **arguments}, message)
            for arguments, message in counts("cap", zero=True)
        ),
    ],
)
test_changed_classes = refused(
    changed_classes,
    [
        ({"recorded": wrong, "current": {"splits": {}}}, "compares two reports that audit returned")
        for wrong in (None, {}, 3, "report", {"splits": None}, {"splits": {"train": {}}})
    ]
    + [({"recorded": {"splits": {}}, "current": None}, "compares two reports that audit returned")],
)
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
            r"batches are pairs \(images, labels\), such as FewShot",
        ),
        (
            {"tasks": lambda rng: Episode({"x": jnp.zeros(1), "y": jnp.zeros(1)}, ())},
            r"batches are pairs \(images, labels\), such as FewShot",
        ),
    ],
)
