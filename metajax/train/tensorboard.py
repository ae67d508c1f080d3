"""What TensorBoard shows of a finished run beside its curves: settings, results and figures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import hparams

from metajax.train.workdir import accessing
from metajax.train.writers import Events


def summarize(
    workdir: str | Path,
    step: int,
    config: Mapping[str, Any],
    results: Mapping[str, float],
    figures: Iterable[str | Path] = (),
) -> None:
    """Adds a finished run to what TensorBoard shows under "HParams" and "Images".

    Args:
      workdir: of `fit`; the event file goes to its folder `events`.
      step: the number of meta-updates, where the results stand.
      config: the hyper-parameters, JSON data.
      results: the final results, scalars.
      figures: PNG files, and GIF files for films. Each is shown by the stem of its name.

    Raises:
      WorkdirError: if the files cannot be read or written.

    Example:

    >>> import tempfile
    >>> from metajax import train
    >>> with tempfile.TemporaryDirectory() as workdir:
    ...     train.summarize(workdir, 1000, {"shots": 5, "algorithm": "maml"}, {"mse": 0.3})
    """
    values = {
        # What is neither a number nor a string has no type there.
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in config.items()
    }
    with accessing(Path(workdir)), contextlib.closing(Events(Path(workdir) / "events", 0)) as file:
        for summary in hparams(values, results):
            file.add(step, summary)
        file.write(step, results)
        file.add(step, Summary(value=[_image(Path(path)) for path in figures]))


def _image(path: Path) -> Any:
    with Image.open(path) as image:
        width, height = image.size
    image = Summary.Image(
        width=width, height=height, colorspace=3, encoded_image_string=path.read_bytes()
    )
    return Summary.Value(tag=path.stem, image=image)
