"""Packs what a machine without a network lacks, in parts that travel one at a time.

A part is a folder of at most `PART_BYTES`; images are compressed together, since the headers of
small JPEG files resemble one another.
"""

from __future__ import annotations

import io
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from metajax.data import cache

PART_BYTES = 48 * 10**6
# What the images of data-centre GPUs mostly lack.
WHEELS = ("tensorboardX", "higher", "torchopt", "optree", "graphviz", "pytest-xdist", "execnet")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "any")
TABLES = ("train.csv", "val.csv", "test.csv")
# Where the parts are unpacked.
UNPACKED = Path.home() / "metajax-data"


def prepare(folder: Path) -> None:
    """Writes the parts: `part0` with wheels, drawings and images, `part1` ... with more images."""
    shutil.rmtree(folder, ignore_errors=True)
    first = folder / "part0"
    _wheels(first / "wheels")
    for drawings in cache.default_dir("omniglot").glob("*.npz"):
        (first / f"{drawings.name}.xz").write_bytes(lzma.compress(drawings.read_bytes()))
    images = Path(os.environ.get("MINI_IMAGENET_DIR", Path.home() / "mini-imagenet"))
    for name in TABLES:
        shutil.copy(images / name, first)
    members = [
        (name, archive)
        for path in sorted(images.glob("*.zip"))
        for archive in [zipfile.ZipFile(path)]
        for name in archive.namelist()
    ]
    total = sum(archive.getinfo(name).file_size for name, archive in members)
    parts = -(-total // PART_BYTES)
    size = -(-len(members) // parts)
    for i in range(parts):
        part = folder / f"part{i}"
        part.mkdir(exist_ok=True)
        _tar(part / f"images-{i}.tar.xz", members[i * size : (i + 1) * size])
        print(part, sum(path.stat().st_size for path in part.rglob("*") if path.is_file()))


def _wheels(folder: Path) -> None:
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
    command += ["--only-binary=:all:", "--python-version=3.12", "--implementation=cp"]
    command += [f"--platform={name}" for name in PLATFORMS]
    subprocess.run([*command, *WHEELS], check=True)


def _tar(path: Path, members: Iterable[tuple[str, zipfile.ZipFile]]) -> None:
    with tarfile.open(path, "w:xz") as tar:
        for name, archive in members:
            info = tarfile.TarInfo(name)
            content = archive.read(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def unpack(folder: Path) -> dict[str, str]:
    """Unpacks the parts that are there; returns the environment that the commands need."""
    site, images = UNPACKED / "site", UNPACKED / "mini-imagenet"
    images.mkdir(parents=True, exist_ok=True)
    for wheels in folder.glob("*/wheels"):
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
        command += ["--upgrade", f"--target={site}", *map(str, wheels.glob("*.whl"))]
        subprocess.run(command, check=True)
    for drawings in folder.glob("*/*.npz.xz"):
        target = cache.default_dir("omniglot") / drawings.stem
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(lzma.decompress(drawings.read_bytes()))
    for table in folder.glob("*/*.csv"):
        shutil.copy(table, images)
    for archive in folder.glob("*/images-*.tar.xz"):
        target = images / archive.name.replace(".tar.xz", ".zip")
        if target.exists():
            continue
        with tarfile.open(archive) as tar, zipfile.ZipFile(target, "w") as zipped:
            for member in tar:
                content = tar.extractfile(member)
                if content is not None:
                    zipped.writestr(member.name, content.read())
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, "MINI_IMAGENET_DIR": str(images)}
