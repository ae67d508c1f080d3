"""Data sets as TensorFlow Datasets prepares them."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import sys
import threading
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from metajax.data import folders
from metajax.data.folders import data_folder

_CONNECT_SECONDS, _ANSWER_SECONDS = 5, 10
_PORTS = {"https": 443, "http": 80, "ftp": 21}


def directory(data_dir: str | os.PathLike[str] | None, title: str) -> Path:
    """`data_dir`, or where TensorFlow Datasets keeps its data without one.

    Raises:
      FileNotFoundError: `data_dir` or `$TFDS_DATA_DIR` names a folder that does not exist.
    """
    remedy = "correct the name, or make the folder to have the data downloaded into it"
    usual = "~/tensorflow_datasets"
    return data_folder(data_dir, "TFDS_DATA_DIR", usual, f"prepared {title}", remedy)


def fingerprint(data_dir: str | os.PathLike[str] | None, title: str, name: str) -> str:
    """The fingerprint of the data set `name` in `directory(data_dir, title)`."""
    return folders.fingerprint(directory(data_dir, title), [f"{name}/**/*"])


def prepare(builder: Any, title: str) -> None:
    """Makes sure that the data of a TFDS builder are there: downloads them, if that is possible.

    One line on stderr says what is downloaded, how large it is, and where it goes.

    Args:
      builder: of TFDS.
      title: what messages call the data set.

    Raises:
      FileNotFoundError: they are not there and cannot be made. Without a network this takes
        seconds.
    """
    if _is_prepared(builder):
        return
    missing = f"no prepared {title} in {builder.data_path}"
    name_and_version = "/".join(Path(builder.data_path).parts[-2:])
    remedy = (
        f"pass as data_dir a directory that holds {name_and_version} of TensorFlow Datasets, or "
        'pip install "metajax[data]" and let it be downloaded'
    )
    if importlib.util.find_spec("tensorflow") is None:
        raise FileNotFoundError(f"{missing}, and TensorFlow to prepare it is not here; {remedy}")
    sources = getattr(builder, "url_infos", None) or {}
    downloaded = _downloaded(builder)
    parts = {url: urllib.parse.urlsplit(url) for url in sources if f'"{url}"' not in downloaded}
    hosts = {part.hostname: url for url, part in parts.items() if part.scheme in _PORTS}
    for host, url in hosts.items():
        fault = _unreachable(url)
        if fault:
            raise FileNotFoundError(
                f"{missing}, and {host} to download it from cannot be reached ({fault}); {remedy}"
            )
    known = f"{sum(sources[url].size for url in parts) / 1e6:,.1f} MB"
    size = known if sources else "data of unknown size"
    print(f"{title}: downloading {size} to {builder.data_path}", file=sys.stderr, flush=True)
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # of the network, the disk or TensorFlow
        raise FileNotFoundError(
            f"{missing}, and preparing it failed ({' '.join(str(error).split())}); {remedy}"
        ) from error


def _is_prepared(builder: Any) -> bool:
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)  # TFDS logs what is absent, which `prepare` tells
    try:
        return builder.is_prepared()
    finally:
        logger.setLevel(level)


def _downloaded(builder: Any) -> str:
    """What TFDS noted of files that were downloaded before, as JSON with their URLs."""
    folder = Path(getattr(builder, "data_dir_root", builder.data_path)) / "downloads"
    notes = [*folder.glob("*.INFO"), *folder.glob("*/*.INFO")]
    return "\n".join(note.read_text(errors="replace") for note in notes)


def _unreachable(url: str) -> str:
    """Says why no connection to a server can be opened; empty where one can.

    TensorFlow Datasets itself would try again for minutes.
    """
    faults: list[str] = []

    def connect() -> None:
        try:
            socket.create_connection(_server(url), _CONNECT_SECONDS).close()
            faults.append("")
        except OSError as error:
            faults.append(str(error))

    # Looking a name up has no time limit, so that a thread of its own has to be left to it.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_ANSWER_SECONDS)
    return faults[0] if faults else f"no answer within {_ANSWER_SECONDS} s"


def _server(url: str) -> tuple[str, int]:
    """Host and port of the server of a URL, or of the proxy on the way to it."""
    parts = urllib.parse.urlsplit(url)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 80)
