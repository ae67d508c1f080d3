"""The table of data sets: a new one is a reader and a line here."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from metajax.data import cifar, mini_imagenet, omniglot, own_images
from metajax.data.images import Splits


class DataSet(NamedTuple):
    """A data set that is loaded by its name.

    Attributes:
      title: its name in figures and messages.
      load: its reader, `(data_dir, *, setting=..., ...) -> Splits`.
      drawings: whether it has drawings, whose quarter turns are other classes, and which smaller
        networks suffice for.
    """

    title: str
    load: Callable[..., Splits]
    drawings: bool = False

    @property
    def settings(self) -> tuple[str, ...]:
        """The names of what its reader can be told besides `data_dir`."""
        return tuple(inspect.signature(self.load).parameters)[1:]


DATA_SETS = {
    "omniglot": DataSet("Omniglot", omniglot.load, drawings=True),
    "mini_imagenet": DataSet("Mini-ImageNet", mini_imagenet.load),
    "cifar_fs": DataSet("CIFAR-FS", functools.partial(cifar.load, split="cifar_fs")),
    "folder": DataSet("the folder", own_images.load),
    "fc100": DataSet("FC100", functools.partial(cifar.load, split="fc100")),
}


def load(name: str, data_dir: str | os.PathLike[str] | None = None, **settings: Any) -> Splits:
    """Loads a data set of the table `DATA_SETS`.

    Args:
      name: a key of the table.
      data_dir: where the data are; each reader has a default.
      **settings: of the reader, such as `split="vinyals"` of Omniglot.

    Returns:
      Three sets of classes.

    Raises:
      FileNotFoundError: `data_dir` does not exist, or the data are not there and cannot be made.
      ImportError: a package that reads them is not installed.
      ValueError: the name or a setting is unknown, or the data are damaged or incomplete.

    Example:
      >>> from metajax import data
      >>> splits = data.load("omniglot", split="vinyals")  # doctest: +SKIP
      >>> splits.train  # doctest: +SKIP
      Images(1028 classes, 20 examples each, 28 x 28 x 1)
      >>> data.DATA_SETS["omniglot"].settings
      ('split', 'size', 'resample', 'cache_dir')
    """
    if not isinstance(name, str) or name not in DATA_SETS:
        raise ValueError(f"the data sets are {', '.join(DATA_SETS)}; got {name!r}")
    data_set = DATA_SETS[name]
    unknown = [setting for setting in settings if setting not in data_set.settings]
    if unknown:
        raise ValueError(
            f"{name} has no setting {unknown[0]!r}; it has {', '.join(data_set.settings)}"
        )
    return data_set.load(data_dir, **settings)
