"""Wrong types, ranks, sizes, names and structures of data: one line each that names the cause."""

import numpy as np
import pytest

from metajax import data as readers
from metajax.data import Images, Splits, audit, changed_classes, cifar, mini_imagenet, omniglot

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


def counts(name, zero=False):
    kind = "a non-negative" if zero else "a positive"
    wrong = [-1, 2.0, 2.5, True, "3", None, np.array(3)] + ([] if zero else [0])
    return [({name: value}, f"{name} .*must be {kind} integer, got ") for value in wrong]


# --- Images by class ---------------------------------------------------------------------------


def images(array=IMAGES, names=NAMES, counts=None):
    return Images(array, names, counts)


test_images = refused(
    images,
    [
        ({"array": IMAGES / 255}, r"must be uint8 \[classes, .* got float64 \(7, 5, 4, 4, 1\)"),
        ({"array": IMAGES[..., 0]}, r"must be uint8 \[classes, .* got uint8 \(7, 5, 4, 4\)"),
        ({"array": IMAGES.tolist()}, "must be uint8 .* got int64"),
        ({"array": None}, r"must be uint8 .* got object \(\)"),
        ({"names": "abc"}, "each class needs one name, got 3 names for 7 classes"),
        ({"names": "abcdefa"}, "each class needs a name of its own, but 'a' occurs twice"),
        ({"names": range(7)}, "the class names must be strings; use map"),
        ({"names": None}, "the class names must be a tuple of strings, got None"),
        ({"counts": [5] * 6}, r"one for each of the 7 classes, got int64 \(6,\)"),
        ({"counts": [5.0] * 7}, r"counts must be integers \[classes\], .* got float64 \(7,\)"),
        ({"counts": 5}, r"counts must be integers \[classes\], .* got int64 \(\)"),
        ({"counts": [5, 5, 6, 5, 5, 5, 5]}, "from 1 to 5 examples, .* got 6 of 'c'"),
        ({"counts": [5, 5, 5, 5, 5, 5, 0]}, "from 1 to 5 examples, .* got 0 of 'g'"),
    ],
)
test_from_classes = refused(
    lambda **classes: Images.from_classes(classes),
    [
        ({}, "there are no images"),
        ({"a": IMAGES[0] / 255}, r"got float64 \[examples, 4, 4, 1\] for 'a'"),
        ({"a": IMAGES[0, 0]}, r"must be uint8 \[examples, .* got uint8 \[examples, 4, 1\]"),
        ({"a": IMAGES[0], "b": IMAGES[0, :, 1:]}, r"\[examples, 3, 4, 1\] for 'b'"),
        ({"a": IMAGES[0], "b": IMAGES[0] > 0}, r"and bool \[examples, 4, 4, 1\] for 'b'"),
    ],
)
test_with_at_least = refused(images().with_at_least, counts("examples"))
test_quarter_turns = refused(
    lambda array: images(array).with_quarter_turns(),
    [({"array": IMAGES[:, :, :3]}, "quarter turns need square images, got 3 x 4; crop them")],
)
test_joined = refused(
    lambda array, names: images().joined(images(array, names)),
    [
        ({"array": IMAGES, "names": "hijklmg"}, "needs a name of its own, but 'g' occurs twice"),
        (
            {"array": IMAGES[:, :, :3], "names": "hijklmn"},
            r"only images of one shape can be joined, got \(4, 4, 1\) and \(3, 4, 1\)",
        ),
    ],
)


# --- Images of one's own -----------------------------------------------------------------------


def from_arrays(images=IMAGES[:6, 0], labels=(0, 0, 1, 1, 2, 2), **settings):
    return readers.from_arrays(images, labels, **settings)


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
        readers.from_folder(folder, size=size)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "1"])
def test_examples_of_a_folder(value, folder):
    with pytest.raises(ValueError, match="examples_per_class must be a positive integer, got "):
        readers.from_folder(folder, size=4, examples_per_class=value)


def test_paths_of_folders(folder):
    with pytest.raises(TypeError, match=r"expected str, bytes or os.PathLike object, not int"):
        readers.from_folder(3, size=4)
    with pytest.raises(FileNotFoundError, match=r"cat/0.png is no folder"):
        readers.from_folder(folder / "cat" / "0.png", size=4)


def test_numpy_integers_are_sizes(folder):
    for size in (np.int64(4), (np.int64(4), 4), [4, 4]):
        assert readers.from_folder(folder, size=size).images.shape == (2, 1, 4, 4, 3)


# --- The table of data sets ----------------------------------------------------------------------

test_load = refused(
    readers.load,
    [
        (
            {"name": "imagenet"},
            "the data sets are omniglot, mini_imagenet, cifar_fs, folder, fc100; got 'imagenet'",
        ),
        ({"name": None}, "the data sets are omniglot, .* got None"),
        ({"name": ["omniglot"]}, "the data sets are omniglot, .* got "),
        (
            {"name": "omniglot", "rotate": True},
            "omniglot has no setting 'rotate'; it has split, si",
        ),
        ({"name": "mini_imagenet", "split": "ravi"}, "no setting 'split'; it has cache_dir"),
        ({"name": "fc100", "split": "finn"}, r"split must be one of \('cifar_fs', 'fc100'\)"),
    ],
)


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

SPLITS = r'splits must be metajax.data.Splits, or a dict of Images such as \{"train": images\}'
test_audit = refused(
    audit,
    [
        ({"splits": None}, SPLITS),
        ({"splits": [images()]}, SPLITS),
        ({"splits": images()}, SPLITS),
        ({"splits": {"train": IMAGES}}, SPLITS),
        ({"splits": {"train": (IMAGES, NAMES)}}, SPLITS),
        ({"splits": Splits(images(), images(), IMAGES)}, SPLITS),
        ({"splits": {}}, r"the splits must hold images of one size, got \{\}"),
        (
            {"splits": {"train": images(), "test": images(IMAGES[:, :, :3])}},
            r"images of one size, got \{'train': \(4, 4, 1\), 'test': \(3, 4, 1\)\}",
        ),
        *(
            ({"splits": {"train": images()}, **arguments}, message)
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
