"""The cache of converted data: no damage goes unseen, nothing half-written survives."""

import json
import logging
import os
import random
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from metajax.data import cache
from metajax.data.folders import fingerprint

ARRAYS = {
    "train": np.arange(60, dtype=np.uint8).reshape(5, 12),
    "test": np.arange(7, dtype=np.uint8),
}
IDENTITY = {"version": 1, "classes": ("a", "b")}


@pytest.fixture
def builds():
    return []


@pytest.fixture
def load(tmp_path, builds):
    """Loads `ARRAYS` through a cache in `tmp_path`, and counts how often they are built."""

    def build(directory):
        builds.append(directory)
        for name, array in ARRAYS.items():
            np.save(directory / f"{name}.npy", array)
        return "nowhere"

    return lambda identity=IDENTITY: cache.cached(tmp_path, identity, build)


def assert_intact(arrays):
    assert sorted(arrays) == sorted(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)


def test_builds_once_and_maps_the_files_read_only(load, builds, tmp_path):
    assert_intact(load())
    arrays = load()
    assert_intact(arrays)
    assert len(builds) == 1
    assert isinstance(arrays["train"], np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        arrays["train"][0] = 0
    np.testing.assert_array_equal(np.load(tmp_path / "train.npy"), ARRAYS["train"])
    assert json.loads((tmp_path / "manifest.json").read_text())["source"] == "nowhere"


def test_another_identity_is_built_anew(load, builds, caplog):
    load()
    assert_intact(load({**IDENTITY, "version": 2}))
    assert len(builds) == 2
    assert "it was made by another version" in caplog.text


def write(text):
    return lambda path: path.write_text(text)


DAMAGE = {
    "truncated": ("train.npy", lambda path: os.truncate(path, 100), "checksum of train.npy"),
    "another value": (
        "test.npy",
        lambda path: np.save(path, ARRAYS["test"] ^ 1),
        "checksum of test.npy",
    ),
    "array gone": ("test.npy", os.remove, "test.npy is gone"),
    "manifest empty": ("manifest.json", write(""), "Expecting value"),
    "manifest of another kind": ("manifest.json", write("[]"), "indices"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_repaired_with_a_warning(kind, load, builds, tmp_path, caplog):
    name, damage, reason = DAMAGE[kind]
    load()
    damage(tmp_path / name)
    with caplog.at_level(logging.WARNING):
        assert_intact(load())
    assert len(builds) == 2
    assert f"rebuilt the data in {tmp_path}" in caplog.text
    assert reason in caplog.text
    caplog.clear()
    assert_intact(load())
    assert len(builds) == 2
    assert not caplog.records


def test_no_single_flipped_bit_gives_wrong_data(load, builds, tmp_path):
    load()
    generator = random.Random(0)
    for _ in range(60):
        path = tmp_path / generator.choice(["train.npy", "test.npy", "manifest.json"])
        damaged = bytearray(path.read_bytes())
        damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        assert_intact(load())
    assert len(builds) > 40  # where the source was named wrongly, nothing was


def test_a_failed_build_leaves_nothing(tmp_path):
    def build(directory):
        np.save(directory / "train.npy", ARRAYS["train"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.cached(tmp_path, IDENTITY, build)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_kill_leaves_nothing_that_counts_or_stays(load, builds, tmp_path):
    script = f"""
        import os, signal, numpy as np
        from metajax.data import cache

        def build(directory):
            np.save(directory / "train.npy", np.zeros(5))
            os.kill(os.getpid(), signal.SIGKILL)

        cache.cached({str(tmp_path)!r}, {IDENTITY!r}, build)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)])
    assert done.returncode == -9
    assert (tmp_path / "partial" / "train.npy").exists()
    assert_intact(load())
    assert len(builds) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "lock",
        "manifest.json",
        "test.npy",
        "train.npy",
    ]


def test_a_kill_between_two_moves_leaves_nothing_that_counts(load, builds, tmp_path, monkeypatch):
    load()
    replace = cache.Path.replace

    def killed(self, target):
        if self.suffix == ".json":
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(cache.Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        load({**IDENTITY, "version": 2})
    monkeypatch.undo()
    assert not (tmp_path / "manifest.json").exists()
    assert_intact(load())
    assert len(builds) == 3


def test_those_who_wait_find_what_the_first_one_built(tmp_path):
    builds = []

    def build(directory):
        builds.append(directory)
        time.sleep(0.2)
        np.save(directory / "train.npy", ARRAYS["train"])
        return "nowhere"

    found = []
    threads = [
        threading.Thread(target=lambda: found.append(cache.cached(tmp_path, IDENTITY, build)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert len(found) == 4
    for arrays in found:
        np.testing.assert_array_equal(arrays["train"], ARRAYS["train"])


def test_the_default_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default_dir("name") == tmp_path / "metajax" / "name"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.default_dir("name") == tmp_path / ".cache" / "metajax" / "name"


def test_data_that_are_named_are_those_that_the_cache_was_made_from(tmp_path, caplog):
    built = []

    def load(name, compare=True):
        def build(directory):
            np.save(directory / "train.npy", np.full(3, len(built), np.uint8))
            built.append(name)
            return name

        return cache.cached(tmp_path, IDENTITY, build, lambda: name, compare=compare)

    for name in ("one", "one", "other"):
        assert load(name)["train"][0] == len(built) - 1
    assert built == ["one", "other"]
    assert "made from other data than those that are named now" in caplog.text
    load("one", compare=False)
    assert built == ["one", "other"]


def test_a_fingerprint_is_of_names_sizes_and_times(tmp_path):
    found = set()
    for change in (
        lambda: (tmp_path / "a.csv").write_text("1"),
        lambda: (tmp_path / "a.csv").write_text("12"),
        lambda: os.utime(tmp_path / "a.csv", ns=(0, 1)),
        lambda: (tmp_path / "b.csv").write_text("1"),
        lambda: (tmp_path / "b.csv").rename(tmp_path / "c.csv"),
    ):
        change()
        found.add(fingerprint(tmp_path, ["*.csv"]))
    (tmp_path / "other.txt").touch()
    assert fingerprint(tmp_path, ["*.csv", "a*"]) in found
    assert len(found) == 5
