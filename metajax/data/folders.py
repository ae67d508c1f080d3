"""Where data are: the folder that the user named, or the usual one."""

from __future__ import annotations

import os
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
