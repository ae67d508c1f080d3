"""Mini-ImageNet from pickles: right ones, others, and those that would run code."""

import collections
import io
import os
import pickle

import numpy as np
import pytest

from metajax.data import mini_imagenet
from tests.data.small_mini_imagenet import SHORT, SPEC, assert_right, load, pixels


def write_pickles(root, change=lambda contents: contents, protocol=2):
    root.mkdir(parents=True, exist_ok=True)
    for split, images in pixels().items():
        names = SPEC.classes[split]
        # The images of the classes take turns, so that only the indices tell them apart.
        contents = {
            "image_data": images.swapaxes(0, 1).reshape(-1, 6, 6, 3),
            "class_dict": {
                name: [row + len(names) * column for column in range(4)]
                for row, name in enumerate(names)
            },
        }
        path = root / f"mini-imagenet-cache-{SHORT[split]}.pkl"
        path.write_bytes(pickle.dumps(change(contents), protocol))
    return root


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickles(protocol, root, cache):
    assert_right(load(write_pickles(root, protocol=protocol), cache))


def test_pickles_with_arrays_of_indices_and_ordered(root, cache):
    def change(contents):
        rows = {name: np.array(rows) for name, rows in contents["class_dict"].items()}
        return {**contents, "class_dict": collections.OrderedDict(rows)}

    assert_right(load(write_pickles(root, change), cache))


def test_pickles_of_python_2(root, cache):
    """As Python 2 wrote them: byte strings for text, and NumPy by the name it had then."""

    def rewrite(path):
        # Protocol 2 of Python 3 differs in two ways: text as BINUNICODE, bytes through _codecs.
        contents = pickle.loads(path.read_bytes())
        images = contents["image_data"]
        parts = [b"\x80\x02}("]
        parts += [b"U\x0aimage_data", b"cnumpy.core.multiarray\n_reconstruct\n"]
        parts += [b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01("]
        parts += [b"M" + size.to_bytes(2, "little") for size in images.shape]
        parts += [b"tcnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN"]
        parts += [b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"]
        raw = images.tobytes()
        parts += [b"T" + len(raw).to_bytes(4, "little") + raw + b"tb"]
        parts += [b"U\x0aclass_dict}("]
        for name, rows in contents["class_dict"].items():
            parts += [b"U" + bytes([len(name)]) + name.encode() + b"]("]
            parts += [b"K" + bytes([row]) for row in rows] + [b"e"]
        path.write_bytes(b"".join([*parts, b"uu."]))

    write_pickles(root)
    for path in root.glob("*.pkl"):
        rewrite(path)
    assert_right(load(root, cache))


class Code:
    ran = False

    def __reduce__(self):
        return setattr, (Code, "ran", True)


def test_pickles_run_no_code(root, cache):
    write_pickles(root, lambda contents: {**contents, "more": Code()})
    with pytest.raises(ValueError, match=r"asks for .*setattr, which is not plain data"):
        load(root, cache)
    assert not Code.ran


@pytest.mark.parametrize(
    ("module", "name"),
    [("numpy", "load"), ("numpy.testing", "measure"), ("numpyx", "ndarray"), ("os", "system")],
)
def test_the_unpickler_admits_only_what_arrays_are_made_of(module, name):
    unpickler = mini_imagenet._NumPyUnpickler(io.BytesIO())
    with pytest.raises(pickle.UnpicklingError, match=f"{module}.{name}"):
        unpickler.find_class(module, name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["image_data"], "cannot be read as a pickle of image_data and class_dict"),
        (lambda c: {**c, "image_data": [1]}, "image_data is no array"),
        (lambda c: {**c, "class_dict": {"n01": "rows"}}, "class n01 is no list of indices"),
        (lambda c: {**c, "image_data": c["image_data"] / 255}, "type float64 and shape"),
        (lambda c: {**c, "image_data": c["image_data"][:, :5]}, r"shape \(5, 6, 3\), not uint8"),
        (lambda c: {**c, "image_data": c["image_data"][:-1]}, "beyond the 11 there"),
        (lambda c: {**c, "class_dict": dict(c["class_dict"], n01=[1, 3, 6, 9])}, "image twice"),
        (lambda c: {**c, "class_dict": dict(c["class_dict"], n01=[0, 3, 6])}, r"4 images .*n01"),
    ],
)
def test_pickles_of_something_else_are_refused(change, message, root, cache):
    with pytest.raises(ValueError, match=f"mini-imagenet-cache-train.pkl.*{message}"):
        load(write_pickles(root, change), cache)


def test_a_truncated_pickle_is_refused(root, cache):
    path = write_pickles(root) / "mini-imagenet-cache-test.pkl"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match=f"{path} cannot be read"):
        load(root, cache)
