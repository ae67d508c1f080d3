"""What a distribution of tasks is, and how a meta-batch is drawn from one."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax

from metajax.base import Episode, Key, PyTree


class TaskDistribution(Protocol):
    """A distribution of tasks, `tau ~ p(tau)`.

    An implementation is a pytree whose leaves are its data and whose settings are static, so that
    it is passed into `jit` as an argument: data closed over would be compiled in as constants.
    """

    def sample(self, rng: Key, /) -> Episode:
        """Draws one task and its support and query; pure, so it runs inside `jit` and `vmap`."""
        ...


@runtime_checkable
class StreamedTasks(TaskDistribution, Protocol):
    """Tasks whose data stay on the host, where `train.fit` reads them ahead.

    `sample(rng)` equals `episode(fetch(draw(rng)))`.
    """

    @property
    def task_bytes(self) -> int:
        """The size of one fetched task."""
        ...

    def draw(self, rng: Key, /) -> PyTree:
        """Draws what makes up a task; pure."""
        ...

    def fetch(self, draw: Any, /) -> PyTree:
        """Reads it on the host, in a thread of its own; draws may have any leading axes."""
        ...

    def episode(self, fetched: Any, /) -> Episode:
        """Makes an episode of it; pure."""
        ...


def meta_batch(tasks: TaskDistribution, num_tasks: int, rng: Key) -> Episode:
    """Draws `num_tasks` independent tasks.

    Args:
      tasks: the distribution.
      num_tasks: how many tasks to draw; static under `jit`.
      rng: a key.

    Returns:
      An episode whose leaves have a leading `[num_tasks]` axis.

    Example:
      >>> import jax
      >>> from metajax.tasks import Sinusoid, meta_batch
      >>> x, y = meta_batch(Sinusoid(shots=10), 25, jax.random.key(0)).support
      >>> x.shape, y.shape
      ((25, 10, 1), (25, 10, 1))
    """
    return jax.vmap(tasks.sample)(jax.random.split(rng, num_tasks))
