"""Where data are: the folder that the user named, or the usual one; and whether they changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path


def data_folder(
    data_dir: str | os.PathLike[str] | None, variable: str, usual: str, what: str, remedy: str
) -> Path:
    """Returns the folder of a data set; makes none.

    Args:
      data_dir: the folder that was asked for, if any.
      variable: the environment variable that names it otherwise.
      usual: the folder where neither does; it need not exist.
      what: what messages call the data.
      remedy: what messages ask for.

    Raises:
      FileNotFoundError: the user named a folder that does not exist.
    """
    for source, named in (("data_dir", data_dir), (f"${variable}", os.environ.get(variable))):
        if not named:
            continue
        path = Path(named).expanduser()
        if not path.is_dir():
            raise FileNotFoundError(
                f"no {what} in {path}: {source} names a folder that does not exist; {remedy}"
            )
        return path
    return Path(usual).expanduser()


def fingerprint(root: Path, patterns: Sequence[str]) -> str:
    """A digest of the names, sizes and times of files, without reading them.

    Args:
      root: the folder that they are in.
      patterns: of `Path.glob`, which choose them.
    """
    found = {path for pattern in patterns for path in root.glob(pattern) if path.is_file()}
    sha = hashlib.sha256()
    for path in sorted(found):
        stat = path.stat()
        sha.update(f"{path.relative_to(root)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return sha.hexdigest()
