"""The interface of a distribution of tasks, and `meta_batch`, which draws from one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax

from metajax.base import Episode, Key, PyTree, check_function, check_integer, split_key


class TaskDistribution(Protocol):
    """A distribution of tasks, `tau ~ p(tau)`: an object that samples episodes.

    An implementation is a pytree with its data as leaves and its settings as static fields, so that
    it can be an argument of a compiled function. Data in a closure would become constants of the
    program. Without data, a plain function `rng -> Episode` is enough.

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

      The same with measured slopes, which are data:

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
        """Draws one task, with its support and query. Pure, so it runs inside `jit` and `vmap`."""
        ...


@runtime_checkable
class StreamedTasks(TaskDistribution, Protocol):
    """Tasks with data on the host, which `train.fit` reads ahead of the device.

    `sample(rng)` equals `episode(fetch(draw(rng)))`.
    """

    @property
    def task_bytes(self) -> int:
        """The size of one fetched task in bytes."""
        ...

    def draw(self, rng: Key, /) -> PyTree:
        """Draws the indices that define a task; pure."""
        ...

    def fetch(self, draw: Any, /) -> PyTree:
        """Reads the data of a draw on the host, in a separate thread. Leading axes are kept."""
        ...

    def episode(self, fetched: Any, /) -> Episode:
        """Makes an episode from fetched data; pure."""
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
      ValueError: if `tasks` cannot be sampled or a sample is not an `Episode`, if `num_tasks` is
        not a positive integer, or if `rng` is not a key.

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
                f"a task must be a metajax.Episode(support, query), but the tasks returned "
                f"{type(task).__name__}"
            )
        return task

    num_tasks = check_integer("meta_batch: num_tasks is static and", num_tasks)
    return jax.vmap(episode)(split_key(rng, num_tasks))


def as_tasks(tasks: TaskDistribution | Callable[[Key], Episode]) -> Any:
    """Makes tasks a valid argument of compiled functions. `meta_batch` takes them in either form.

    Args:
      tasks: a distribution, or a function `rng -> Episode`.

    Returns:
      A distribution unchanged, or a function as a static pytree.

    Raises:
      ValueError: if `tasks` cannot be sampled, or their class is not registered as a pytree.

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
            f"register it with jax.tree_util.register_dataclass, or with register_static if "
            f"its data stay on the host"
        )
    return jax.tree_util.Partial(tasks)


def _sampler(tasks: Any) -> Callable[[Key], Episode]:
    sample = getattr(tasks, "sample", tasks)
    method = " or an object with a method sample(rng), such as Sinusoid() (mind the parentheses)"
    check_function("the tasks", sample, "rng", method)
    return sample
