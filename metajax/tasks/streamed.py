"""N-way K-shot classification tasks from images that do not fit on the device."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, NamedTuple

import jax
import numpy as np

from metajax.base import Array, Episode, Key, check_integer
from metajax.data.images import Images
from metajax.tasks.deprecated import moved
from metajax.tasks.few_shot import Draw, FewShot, settle


class Fetched(NamedTuple):
    """The images of a task, read on the host.

    Attributes:
      images: uint8 `[ways, shots + queries, height, width, channels]`, the support first.
      quarter_turns: a rotation for each class in units of 90 degrees, int32 `[ways]`.
    """

    images: Array | np.ndarray
    quarter_turns: Array | np.ndarray


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class StreamedFewShot:
    """The same tasks as `FewShot`, bit for bit, from images that stay on the host.

    Only the images of the sampled tasks move to the device, as uint8. `train.fit` reads the images
    of the next meta-batches in the background while the device works. Outside `train.fit`, `sample`
    calls the host from the compiled program, and the device waits.

    Attributes:
      images: `metajax.data.Images`, or only their NumPy array, uint8 `[classes, examples, height,
        width, channels]`, which may be mapped from a file. The attribute is the array.
      ways, shots, queries, rotate, counts: as in `FewShot`.

    Raises:
      ValueError: as in `FewShot`, or if `images` are not a NumPy array.

    Example:
      >>> import jax, numpy as np
      >>> images = np.random.default_rng(0).integers(0, 256, (9, 20, 28, 28, 1), np.uint8)
      >>> settings = dict(ways=5, shots=1, queries=15, rotate=True)
      >>> key = jax.random.key(0)
      >>> one, other = (jax.jit(tasks.sample)(key).query[0]
      ...               for tasks in (FewShot(images, **settings),
      ...                             StreamedFewShot(images, **settings)))
      >>> bool((one == other).all())
      True
    """

    images: Any
    _: dataclasses.KW_ONLY
    ways: int
    shots: int
    queries: int
    rotate: bool = False
    counts: Any = None

    def __post_init__(self) -> None:
        settle(self)
        if not isinstance(self.images, np.ndarray):
            raise ValueError(
                f"images must be a NumPy array to stay on the host, got "
                f"{type(self.images).__name__}; use np.asarray(images), or FewShot for images on "
                f"the device"
            )

    @property
    def _tasks(self) -> FewShot:
        layout = jax.ShapeDtypeStruct(self.images.shape, self.images.dtype)
        settings = {"ways": self.ways, "shots": self.shots, "queries": self.queries}
        return FewShot(layout, **settings, rotate=self.rotate, counts=self.counts)

    @property
    def task_bytes(self) -> int:
        """The size of one fetched task in bytes."""
        return self.ways * (self.shots + self.queries) * int(np.prod(self.images.shape[2:]))

    def draw(self, rng: Key) -> Draw:
        """Draws the indices of the images of a task; see `FewShot.draw`."""
        return self._tasks.draw(rng)

    def fetch(self, draw: Draw) -> Fetched:
        """Reads the images of tasks on the host.

        Args:
          draw: the result of `draw`; leading axes are kept.
        """
        classes, examples, quarter_turns = map(np.asarray, draw)
        return Fetched(self.images[classes[..., None], examples], quarter_turns)

    def episode(self, fetched: Fetched) -> Episode:
        """Rotates, scales and labels the images of one task on the device."""
        return self._tasks.episode(*fetched)

    def sample(self, rng: Key) -> Episode:
        """Draws one task. Pure; inside `jit` it calls back to the host."""
        draw = self.draw(rng)
        shape = (self.ways, self.shots + self.queries, *self.images.shape[2:])
        layout = jax.ShapeDtypeStruct(shape, np.uint8)
        images = jax.pure_callback(
            lambda *draw: self.fetch(Draw(*draw)).images, layout, *draw, vmap_method="broadcast_all"
        )
        return self.episode(Fetched(images, draw.quarter_turns))


def few_shot_tasks(
    images: Images | np.ndarray,
    *,
    ways: int,
    shots: int,
    queries: int,
    rotate: bool = False,
    device_bytes: int | None = None,
) -> FewShot | StreamedFewShot:
    """Makes few-shot tasks: `FewShot` if the images fit on the device, else `StreamedFewShot`.

    Both give the same episodes.

    Args:
      images: `metajax.data.Images`, or only their array.
      ways, shots, queries, rotate: as in `FewShot`.
      device_bytes: the memory in bytes that the images may take on the device, by default half of
        the device's memory.

    Raises:
      ValueError: as in `FewShot`, or if `device_bytes` is not a non-negative integer.

    Example:
      >>> import numpy as np
      >>> images = np.zeros((64, 20, 28, 28, 1), np.uint8)
      >>> type(few_shot_tasks(images, ways=5, shots=1, queries=15)).__name__
      'FewShot'
      >>> type(few_shot_tasks(images, ways=5, shots=1, queries=15, device_bytes=10**6)).__name__
      'StreamedFewShot'
    """
    if device_bytes is None:
        device_bytes = _device_memory() // 2
    check_integer("device_bytes", device_bytes, minimum=0)
    # One byte per number. Both classes refuse anything but images.
    size = images.array.size if isinstance(images, Images) else np.size(images)
    kind = FewShot if size <= device_bytes else StreamedFewShot
    return kind(images, ways=ways, shots=shots, queries=queries, rotate=rotate)


place = moved("metajax.tasks.place", "metajax.tasks.few_shot_tasks", few_shot_tasks)


def _device_memory() -> int:
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # the host's memory, for a CPU
