"""What a distribution of tasks is, and how a meta-batch is drawn from one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax

from metajax.base import Episode, Key, PyTree, check_function, check_integer, split_key


class TaskDistribution(Protocol):
    """A distribution of tasks, `tau ~ p(tau)`: an object that samples episodes.

    An implementation is a pytree whose leaves are its data and whose settings are static, so that
    it is passed into `jit` as an argument: data closed over would be compiled in as constants.
    Where there are no data, a plain function `rng -> Episode` will do.

    Example:
      Linear regression, as a function:

      >>> import dataclasses, jax, jax.numpy as jnp, metajax
      >>> def linear(rng):
      ...     slope_rng, x_rng = jax.random.split(rng)
      ...     slope, x = jax.random.normal(slope_rng), jax.random.normal(x_rng, (15, 1))
      ...     return metajax.Episode((x[:5], slope * x[:5]), (x[5:], slope * x[5:]))
      >>> x, y = metajax.tasks.meta_batch(linear, 4, jax.random.key(0)).support
      >>> x.shape, y.shape
      ((4, 5, 1), (4, 5, 1))

      The same over slopes that were measured, which are data:

      >>> @jax.tree_util.register_dataclass
      ... @dataclasses.dataclass(frozen=True)
      ... class Linear:
      ...     slopes: jax.Array
      ...     shots: int = dataclasses.field(default=5, metadata={"static": True})
      ...
      ...     def sample(self, rng):
      ...         slope_rng, x_rng = jax.random.split(rng)
      ...         x = jax.random.normal(x_rng, (self.shots + 10, 1))
      ...         batch = x, jax.random.choice(slope_rng, self.slopes) * x
      ...         support = jax.tree.map(lambda a: a[: self.shots], batch)
      ...         return metajax.Episode(support, jax.tree.map(lambda a: a[self.shots :], batch))
      >>> sample = jax.jit(metajax.tasks.meta_batch, static_argnums=1)
      >>> x, y = sample(Linear(jnp.array([0.5, 1.0, 2.0])), 4, jax.random.key(0)).support
      >>> x.shape, y.shape
      ((4, 5, 1), (4, 5, 1))
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


def meta_batch(
    tasks: TaskDistribution | Callable[[Key], Episode], num_tasks: int, rng: Key
) -> Episode:
    """Draws `num_tasks` independent tasks.

    Args:
      tasks: the distribution, or a function `rng -> Episode`.
      num_tasks: how many tasks to draw; static under `jit`.
      rng: a key.

    Returns:
      An episode whose leaves have a leading `[num_tasks]` axis.

    Raises:
      ValueError: `tasks` cannot be sampled or samples no `Episode`, `num_tasks` is no positive
        integer, or `rng` is no key.

    Example:
      >>> import jax
      >>> from metajax.tasks import Sinusoid, meta_batch
      >>> x, y = meta_batch(Sinusoid(shots=10), 25, jax.random.key(0)).support
      >>> x.shape, y.shape
      ((25, 10, 1), (25, 10, 1))
    """
    sample = _sampler(tasks)

    def episode(rng: Key) -> Episode:
        task = sample(rng)
        if not isinstance(task, Episode):
            raise ValueError(
                f"a task must be a metajax.Episode(support, query), the tasks returned "
                f"{type(task).__name__}"
            )
        return task

    num_tasks = check_integer("meta_batch: num_tasks is static and", num_tasks)
    return jax.vmap(episode)(split_key(rng, num_tasks))


def as_tasks(tasks: TaskDistribution | Callable[[Key], Episode]) -> Any:
    """Makes tasks an argument that `jit` accepts; `meta_batch` takes them before and after.

    Args:
      tasks: a distribution, or a function `rng -> Episode`.

    Returns:
      A distribution as it is, a function as a static pytree.

    Raises:
      ValueError: `tasks` cannot be sampled, or are of a class that is not registered as a pytree.

    Example:
      >>> import jax, jax.numpy as jnp, metajax
      >>> def sign(rng):
      ...     y = jax.random.rademacher(rng, (1,), jnp.float32)
      ...     return metajax.Episode((jnp.zeros(1), y), (jnp.zeros(1), y))
      >>> sample = jax.jit(metajax.tasks.meta_batch, static_argnums=1)
      >>> sample(metajax.tasks.as_tasks(sign), 3, jax.random.key(0)).query[1].shape
      (3, 1)
    """
    _sampler(tasks)
    if not jax.tree_util.all_leaves([tasks]):
        return tasks
    if hasattr(tasks, "sample"):
        raise ValueError(
            f"{type(tasks).__name__} must be a pytree to be passed into compiled functions: "
            f"register it with jax.tree_util.register_dataclass, or with register_static where "
            f"its data stay on the host"
        )
    return jax.tree_util.Partial(tasks)


def _sampler(tasks: Any) -> Callable[[Key], Episode]:
    sample = getattr(tasks, "sample", tasks)
    method = " or an object with a method sample(rng), such as Sinusoid() (mind the parentheses)"
    check_function("the tasks", sample, "rng", method)
    return sample
