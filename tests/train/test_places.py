"""Working directories in a store: an emulator of one, on this machine."""

import importlib.util
import logging
import os
import subprocess
import sys

import pytest

from metajax import train
from metajax.train import places
from tests.train.runs import assert_same_run, lines, own, run


@pytest.mark.parametrize("name", ["s3://bucket/run", "az://bucket/run", "ftp://host/run"])
def test_a_store_that_cannot_hold_checkpoints_is_refused_in_one_line(name):
    with pytest.raises(train.WorkdirError, match="Mount that store as a folder") as found:
        run(name, own())
    assert "\n" not in str(found.value)


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    message = "gs://bucket/run needs a package that is missing: pip install gcsfs."
    with pytest.raises(train.WorkdirError) as found:
        run("gs://bucket/run", own())
    assert str(found.value) == message


def test_local_names_are_paths(tmp_path):
    for name in (str(tmp_path), tmp_path, "runs/gs:/x"):
        assert places.is_local(train.place(name))
        assert os.fspath(train.place(name)) == os.fspath(name)


# A program of its own: TensorStore reads the emulator's address once, and needs a main thread.
STORE = """
import logging, os, socket, sys
with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
address = f"http://localhost:{port}"
os.environ["STORAGE_EMULATOR_HOST"] = os.environ["TENSORSTORE_GCS_HTTP_URL"] = address
os.environ["GOOGLE_AUTH_TOKEN_FOR_TESTING"] = "token"
from gcp_storage_emulator.server import create_server
server = create_server("localhost", port, in_memory=True, default_bucket="bucket")
server.start()
logging.disable(logging.NOTSET)
sys.path.insert(0, sys.argv[1])
try:
    from tests.train import store_checks
    getattr(store_checks, sys.argv[2])(*sys.argv[3:])
finally:
    server.stop()
"""


def in_store(check, *words):
    pytest.importorskip("gcsfs")
    pytest.importorskip("gcp_storage_emulator")
    if importlib.util.find_spec("tensorflow"):
        pytest.skip("with TensorFlow, etils takes its file system, which knows no emulator")
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    done = subprocess.run(
        [sys.executable, "-c", STORE, root, check, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.slow
def test_a_run_in_a_store_is_killed_continued_and_repaired(tmp_path):
    in_store("a_run")


@pytest.mark.slow
def test_a_launcher_in_a_store(tmp_path):
    in_store("a_launcher")


def test_what_a_store_refuses_is_one_line():
    path = places.epath.Path("gs://bucket/run")
    message = "cannot be read or written: KeyError: 'x'"
    with pytest.raises(train.WorkdirError, match=message), train.accessing(path):
        raise KeyError("x")


def test_metrics_in_a_store_are_published_with_each_checkpoint(tmp_path, monkeypatch, caplog):
    # A folder that is treated as a store is one to everything but the file system.
    local = run(tmp_path / "local", own())
    for module in ("writers", "workdir", "checkpoints"):
        monkeypatch.setattr(f"metajax.train.{module}.is_local", lambda path: False)
    (tmp_path / "store").mkdir()
    with caplog.at_level(logging.WARNING):
        found = run(tmp_path / "store", own())
    assert "cannot be locked: start one run at a time there" in caplog.text
    assert_same_run(found, local)
    assert lines(tmp_path / "store") == lines(tmp_path / "local")
    assert len([*(tmp_path / "store" / "events").iterdir()]) == 1
