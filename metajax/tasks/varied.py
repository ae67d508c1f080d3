"""Tasks of varying ways and shots, padded to one shape."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from metajax.base import Array, Batch, Episode, Key, check_integer, split_key
from metajax.tasks.few_shot import FewShot
from metajax.tasks.streamed import StreamedFewShot


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("tasks",),
    meta_fields=("min_ways", "min_shots"),
)
@dataclasses.dataclass(frozen=True, eq=False)
class Varied:
    """Few-shot tasks with a random number of classes, and of shots for each class.

    Tasks are drawn at full size, and examples beyond the drawn numbers are masked, so that all
    tasks have one shape and one compiled program. Classes with fewer examples than a full task has
    are refused, as by `FewShot`.

    The library's losses, metrics and heads in closed form ignore what is masked: with a model that
    treats examples one by one, loss and gradient are those of the smaller task. A batch
    normalization sees the masked images too. The labels of a task with `n` ways are 0 to `n - 1`; a
    network with a linear head has outputs for all ways, and learns which are rare.

    Attributes:
      tasks: the full tasks, a `FewShot` or `StreamedFewShot`.
      min_ways: the least classes per task; the most are those of `tasks`.
      min_shots: the least support examples of each class; the most are those of `tasks`.

    Raises:
      ValueError: for other tasks, or if a number is not a positive integer or exceeds that of
        `tasks`.

    Example:
      >>> import jax, numpy as np
      >>> from metajax import tasks
      >>> images = np.zeros((64, 20, 28, 28, 1), np.uint8)
      >>> full = tasks.FewShot(images, ways=20, shots=5, queries=5)
      >>> varied = tasks.Varied(full, min_ways=5, min_shots=1)
      >>> support = varied.sample(jax.random.key(0)).support
      >>> sorted(support), support["mask"].shape
      (['mask', 'x', 'y'], (100,))

    References:
      Triantafillou et al., `Meta-Dataset <https://arxiv.org/abs/1903.03096>`_, 2020, section 3.2,
      for tasks of varying ways and shots; the uniform distribution is simpler than theirs.
    """

    tasks: FewShot | StreamedFewShot
    min_ways: int = 2
    min_shots: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.tasks, FewShot | StreamedFewShot):
            if callable(getattr(self.tasks, "sample", self.tasks)):
                raise ValueError(
                    f"Varied: the tasks must be a FewShot, got {type(self.tasks).__name__}."
                )
            return  # JAX rebuilds the dataclass with placeholders
        for name in ("ways", "shots"):
            least = check_integer(f"Varied: min_{name}", getattr(self, f"min_{name}"))
            if least > (most := getattr(self.tasks, name)):
                raise ValueError(
                    f"Varied: min_{name}={least} exceeds the {most} {name} of the tasks."
                )

    def sample(self, rng: Key) -> Episode:
        """Draws one task.

        Returns:
          An episode of dicts of `"x"`, `"y"` and the boolean `"mask"` `[examples]`, otherwise as
          from `FewShot.sample`.
        """
        task_rng, ways_rng, shots_rng = split_key(rng, 3)
        most = self.tasks.ways
        ways = jax.random.randint(ways_rng, (), self.min_ways, most + 1)
        shots = jax.random.randint(shots_rng, (most,), self.min_shots, self.tasks.shots + 1)
        support, query = self.tasks.sample(task_rng)

        def masked(batch: tuple[Array, Array], limits: Array) -> Batch:
            x, y = batch
            # The examples of each class are in a row.
            place = jnp.arange(len(y)) % max(len(y) // most, 1)
            return {"x": x, "y": y, "mask": (y < ways) & (place < limits[y])}

        whole = jnp.full((most,), self.tasks.queries)
        return Episode(masked(support, shots), masked(query, whole))
