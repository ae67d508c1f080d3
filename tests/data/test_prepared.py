"""Downloads: announced with their size, refused within seconds, into no folder made by mistake."""

import socket
import threading
import time
import types

import pytest

from metajax import data
from metajax.data import prepared


class Builder:
    """What is used of a TFDS builder whose data are not there."""

    def __init__(self, *urls, folder="somewhere", error=None):
        self.data_path = f"{folder}/set/1.0.0"
        sizes = (2_000_000, 345_678)
        self.url_infos = {
            url: types.SimpleNamespace(size=size) for url, size in zip(urls, sizes, strict=False)
        }
        self.downloads, self._error = 0, error

    def is_prepared(self):
        return False

    def download_and_prepare(self, file_format):
        assert file_format == "array_record"
        self.downloads += 1
        if self._error:
            raise self._error


@pytest.fixture(autouse=True)
def with_tensorflow(monkeypatch):
    monkeypatch.setattr(prepared.importlib.util, "find_spec", lambda name: name)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_download_is_announced_with_its_size(server, capsys):
    builder = Builder(f"{server}/one.zip", f"{server}/two.zip")
    builder.download_and_prepare = lambda file_format: print("downloading")  # to see the order
    prepared.prepare(builder, "Title")
    out, err = capsys.readouterr()
    assert err == "Title: downloading 2.3 MB to somewhere/set/1.0.0\n"
    assert out == "downloading\n"


def test_the_announcement_comes_first(capsys):
    builder = Builder(error=OSError("disk\nfull"))
    with pytest.raises(
        FileNotFoundError, match=r"preparing it failed \(disk full\); pass as data_"
    ):
        prepared.prepare(builder, "Title")
    assert capsys.readouterr().err == (
        "Title: downloading data of unknown size to somewhere/set/1.0.0\n"
    )


def refused(builder, message, seconds):
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match=message) as caught:
        prepared.prepare(builder, "Title")
    assert time.monotonic() - start < seconds
    assert "\n" not in str(caught.value)
    assert builder.downloads == 0


def test_a_host_that_does_not_exist(capsys):
    builder = Builder("https://no-such-host.invalid/one.zip")
    message = "no prepared Title in somewhere/set/1.0.0, and no-such-host.invalid to download it"
    refused(builder, message, 20)
    assert capsys.readouterr().err == ""


def test_one_host_of_several(server):
    builder = Builder(f"{server}/one.zip", "https://no-such-host.invalid/two.zip")
    refused(builder, "no-such-host.invalid .* cannot be reached", 20)


def test_files_that_were_downloaded_before_need_no_network(tmp_path, capsys):
    one, two = (f"https://no-such-host.invalid/{name}.zip" for name in ("one", "two"))
    builder = Builder(one, two)
    builder.data_dir_root = tmp_path
    (tmp_path / "downloads" / "set").mkdir(parents=True)
    note = '{"dataset_names": ["set"], "urls": ["%s"]}'
    (tmp_path / "downloads" / "one.zip.INFO").write_text(note % one)
    refused(builder, "no-such-host.invalid .* cannot be reached", 20)
    (tmp_path / "downloads" / "set" / "two.zip.INFO").write_text(note % two)
    prepared.prepare(builder, "Title")
    assert builder.downloads == 1
    assert "downloading 0.0 MB" in capsys.readouterr().err


def test_a_host_that_does_not_answer(monkeypatch):
    answered = threading.Event()

    def connect(address, timeout):
        answered.wait(60)
        raise OSError

    monkeypatch.setattr(prepared, "_ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(socket, "create_connection", connect)
    refused(Builder("https://example.org/one.zip"), r"\(no answer within 0.2 s\)", 20)
    answered.set()


def test_a_port_that_is_closed(server):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    refused(Builder(f"http://127.0.0.1:{port}/one.zip"), "cannot be reached .*refused", 5)


def test_a_proxy_is_asked_in_its_place(server, monkeypatch):
    builder = Builder("http://no-such-host.invalid/one.zip")
    monkeypatch.setenv("http_proxy", server)
    prepared.prepare(builder, "Title")
    assert builder.downloads == 1
    monkeypatch.setenv("no_proxy", "no-such-host.invalid")
    with pytest.raises(FileNotFoundError, match="cannot be reached"):
        prepared.prepare(builder, "Title")


# --- Folders that do not exist -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("omniglot", "prepared Omniglot"),
        ("fc100", "prepared CIFAR-100"),
        ("mini_imagenet", "Mini-ImageNet"),
    ],
)
def test_a_named_folder_that_is_not_there(name, what, tmp_path):
    nowhere, cache = tmp_path / "nowhere", tmp_path / "cache"
    message = f"no {what} in {nowhere}: data_dir names a folder that does not exist; "
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match=message) as caught:
        data.load(name, nowhere, cache_dir=cache)
    assert time.monotonic() - start < 5
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "variable"), [("omniglot", "TFDS_DATA_DIR"), ("mini_imagenet", "MINI_IMAGENET_DIR")]
)
def test_an_environment_that_names_no_folder(name, variable, tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    nowhere = tmp_path / "nowhere"
    monkeypatch.setenv(variable, str(nowhere))
    message = rf"{nowhere}: \${variable} names a folder that does not exist; "
    with pytest.raises(FileNotFoundError, match=message):
        data.load(name, cache_dir=tmp_path / "cache")
    assert not nowhere.exists()


def test_tfds_of_a_folder_that_is_not_there(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(FileNotFoundError, match=r"no prepared mnist in .*nowhere: data_dir names"):
        data.from_tfds("mnist", "train", size=8, data_dir=tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_the_usual_folder_need_not_be_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    assert prepared.directory(None, "Title") == tmp_path / "tensorflow_datasets"
    assert not list(tmp_path.iterdir())
