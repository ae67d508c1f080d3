"""Data sets as TensorFlow Datasets prepares them."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any


def directory(data_dir: str | os.PathLike[str] | None) -> Path:
    """`data_dir`, or where TensorFlow Datasets keeps its data without one."""
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(root).expanduser()


def prepare(builder: Any, title: str) -> None:
    """Makes sure that the data of a TFDS builder are there: downloads them, if that is possible.

    Args:
      builder: of TFDS.
      title: what messages call the data set.

    Raises:
      FileNotFoundError: they are not and cannot be.
    """
    if builder.is_prepared():
        return
    missing = f"no prepared {title} in {builder.data_path}"
    name_and_version = "/".join(Path(builder.data_path).parts[-2:])
    remedy = (
        f"pass as data_dir a directory that holds {name_and_version} of TensorFlow Datasets, or "
        'pip install "metajax[data]" and let it be downloaded'
    )
    if importlib.util.find_spec("tensorflow") is None:
        raise FileNotFoundError(f"{missing}, and TensorFlow to prepare it is not here; {remedy}")
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # of the network, the disk or TensorFlow
        raise FileNotFoundError(
            f"{missing}, and preparing it failed ({error}); {remedy}"
        ) from error
