"""Omniglot: missing, damaged and incomplete sources."""

import collections
import io
import sys
import types

import pytest

from metajax.data import omniglot, prepared

REMEDY = r'pip install "metajax\[data\]"'


def load_small(cache_dir):
    return omniglot.load(size=1, cache_dir=cache_dir)


@pytest.fixture
def tfds():
    return pytest.importorskip("tensorflow_datasets")


@pytest.fixture
def without_tensorflow(monkeypatch):
    monkeypatch.setattr(prepared.importlib.util, "find_spec", lambda name: None)


def test_missing_data_are_named_with_a_remedy(tfds, without_tensorflow, tmp_path):
    message = rf"no prepared Omniglot in {tmp_path}/omniglot/3\.0\.0.*data_dir.*{REMEDY}"
    with pytest.raises(FileNotFoundError, match=message):
        omniglot.load(tmp_path, cache_dir=tmp_path / "cache")
    assert not list(tmp_path.iterdir())


def test_the_default_directory_is_that_of_tfds(tfds, without_tensorflow, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "default"))
    (tmp_path / "default").mkdir()
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/default/omniglot"):
        omniglot.load(cache_dir=tmp_path)


def test_unreadable_data_are_named_with_a_remedy(tfds, tmp_path):
    directory = tmp_path / "omniglot" / "3.0.0"
    directory.mkdir(parents=True)
    (directory / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match=rf"{tmp_path} cannot be read \(.*JSON.*prepare it again"):
        omniglot.load(tmp_path, cache_dir=tmp_path)


def test_tfds_not_installed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=f"needs tensorflow-datasets and Pillow.*{REMEDY}"):
        omniglot.load(cache_dir=tmp_path)


class FakeBuilder:
    """What is used of a TFDS builder; holds nothing until downloaded."""

    data_path = "somewhere/omniglot/3.0.0"

    def __init__(self, characters, prepared=True, download_error=None):
        alphabets = sorted({name.split("/")[0] for name in characters})
        features = {"alphabet": types.SimpleNamespace(names=alphabets)}
        self.info = types.SimpleNamespace(features=features)
        self._records = [self._record(alphabets, name) for name in characters] * 20
        self._prepared, self._download_error = prepared, download_error

    @staticmethod
    def _record(alphabets, name):
        from PIL import Image

        alphabet, _, character = name.partition("/character")
        file = io.BytesIO()
        Image.new("1", (1, 1), color=1).save(file, "png")
        return {
            "image": file.getvalue(),
            "alphabet": alphabets.index(alphabet),
            "alphabet_char_id": int(character) - 1,
        }

    def is_prepared(self):
        return self._prepared

    def download_and_prepare(self, file_format):
        assert file_format == "array_record"
        if self._download_error:
            raise self._download_error
        self._prepared = True

    def as_data_source(self, split, decoders):
        assert self._prepared
        assert (split, decoders) == (["train", "test"], {"image": "skip"})
        return self._records[::2], self._records[1::2]


@pytest.fixture
def install(monkeypatch):
    """Puts a builder in the place of TFDS's."""
    pytest.importorskip("PIL")

    def install(builder):
        decode = types.SimpleNamespace(SkipDecoding=lambda: "skip")
        fake = types.SimpleNamespace(decode=decode, builder=lambda name, data_dir: builder)
        monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)
        monkeypatch.setattr(prepared.importlib.util, "find_spec", lambda name: name)

    return install


def test_missing_data_are_prepared_where_tensorflow_is_installed(install, tmp_path):
    characters = [name for part in omniglot._vinyals_split() for name in part]
    install(FakeBuilder(characters, prepared=False))
    data = load_small(tmp_path)
    assert collections.Counter(data.train.images.ravel().tolist()) == {0: 1100 * 20}  # blank paper


def test_a_failed_download_is_explained(install, tmp_path):
    install(FakeBuilder([], prepared=False, download_error=ConnectionError("no network")))
    message = rf"somewhere/omniglot.*preparing it failed \(no network\).*{REMEDY}"
    with pytest.raises(FileNotFoundError, match=message):
        load_small(tmp_path)


@pytest.mark.parametrize(
    ("characters", "message"),
    [
        (["Greek/character01"], r"1 characters, 0 of them unknown, with \[20\] drawings"),
        (["Greek/character01"] * 2, r"1 characters, 0 of them unknown, with \[40\] drawings"),
        (["Klingon/character01"], "1 characters, 1 of them unknown"),
    ],
)
def test_incomplete_data_are_refused(install, characters, message, tmp_path):
    install(FakeBuilder(characters))
    with pytest.raises(ValueError, match=f"{message}.*1623 known ones with 20 each; delete"):
        load_small(tmp_path)
    assert not list(tmp_path.iterdir())
