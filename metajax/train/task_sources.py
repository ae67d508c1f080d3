"""Where the meta-batches of a run are drawn: on the device, or on the host and read ahead."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from metajax.base import Array, Episode, Key, MetaState, Metrics, PyTree
from metajax.learner import check_episodes
from metajax.parallel import TASKS
from metajax.tasks import StreamedTasks, TaskDistribution, meta_batch
from metajax.train.processes import on_mesh

# The most bytes of one block; up to four blocks exist at a time.
BLOCK_BYTES = 64 * 2**20

T = TypeVar("T")
Calls = Iterable[tuple[int, int]]  # the first meta-step and the number of meta-steps of each


class Stream(NamedTuple):
    """Meta-batches from any iterator, as tasks for `fit`: a loader of PyTorch, grain or tf.data.

    The iterator is read ahead in a background thread. A resumed run opens it at the meta-step where
    it continues. It is bit-identical to an uninterrupted one if `open_at(t)` yields the
    meta-batches that `open_at(0)` yields from the `t`-th on. An iterator that cannot be positioned
    starts anew: then a resumed run is a valid one, with other tasks.

    Attributes:
      open_at: `meta-step -> iterator of Episode`, with leaves `[tasks, ...]`: arrays of NumPy or
        whatever it can convert. The iterator has an episode for every further meta-step.

    Example, a generator with a seed of its own for every meta-step:

    >>> import jax.numpy as jnp, numpy as np, optax, itertools, jax, metajax
    >>> from metajax import train
    >>> def meta_batches(start):
    ...     for step in itertools.count(start):
    ...         x = np.random.default_rng(step).normal(size=(4, 10)).astype(np.float32)
    ...         yield metajax.Episode(support=x[:, :5], query=x[:, 5:])
    >>> loss = lambda params, batch, rng: (jnp.mean((params - batch) ** 2), {})
    >>> result = train.fit(
    ...     metajax.maml(loss, optax.sgd(0.1), optax.adam(1e-3)), jnp.zeros(()),
    ...     train.Stream(meta_batches), key=jax.random.key(0), num_meta_steps=3,
    ...     meta_batch_size=4, steps_per_call=3, show_progress=False)

    A loader in a fixed order that starts over, skipped to the meta-step:

    >>> def open_at(step):
    ...     batches = itertools.chain.from_iterable(itertools.repeat(loader))
    ...     return itertools.islice(batches, step, None)
    """

    open_at: Callable[[int], Iterator[Episode]]


class Block(NamedTuple):
    """Consecutive meta-steps and the arrays that the host read for them.

    Attributes:
      length: the number of meta-steps.
      fetched: arrays `[length, tasks, ...]`; `None` where the device needs nothing.
    """

    length: int
    fetched: PyTree = None


class Source(Protocol):
    """Draws the meta-batches of a run, one for each meta-step."""

    @property
    def tasks(self) -> Any:
        """The tasks, an argument of the compiled program."""
        ...

    def episodes(self, tasks: Any, fetched: PyTree, rng: Key) -> Episode:
        """Makes a meta-batch inside the compiled program; pure."""
        ...

    def blocks(self, calls: Calls) -> Generator[Block]:
        """Yields the blocks of all calls in order; no block crosses the end of a call."""
        ...

    def first(self) -> PyTree:
        """The fetched arrays of meta-step 0, without the axis over meta-steps."""
        ...


def make_source(
    tasks: Any, meta_batch_size: int, task_rng: Callable[[Array], Key], mesh: Mesh | None = None
) -> Source:
    """Chooses the source of the meta-batches by the kind of the tasks.

    Args:
      tasks: a distribution of tasks.
      meta_batch_size: tasks per meta-step.
      task_rng: `step -> rng` of the step's meta-batch; pure.
      mesh: the devices of the run.
    """
    if isinstance(tasks, Stream):
        return StreamSource(tasks, meta_batch_size, mesh)
    if isinstance(tasks, StreamedTasks):
        return HostSource(tasks, meta_batch_size, task_rng, mesh)
    return DeviceSource(on_mesh(mesh, tasks), meta_batch_size, task_rng)


class DeviceSource(NamedTuple):
    """Draws meta-batches inside the compiled program."""

    tasks: TaskDistribution
    meta_batch_size: int
    task_rng: Callable[[Array], Key]

    def episodes(self, tasks: TaskDistribution, fetched: None, rng: Key) -> Episode:
        return meta_batch(tasks, self.meta_batch_size, rng)

    def blocks(self, calls: Calls) -> Generator[Block]:
        return (Block(length) for _, length in calls)

    def first(self) -> None:
        return None


class HostSource(NamedTuple):
    """Reads meta-batches on the host while the device works on earlier ones.

    Each process reads the tasks of its own devices.
    """

    tasks: StreamedTasks
    meta_batch_size: int
    task_rng: Callable[[Array], Key]
    mesh: Mesh | None = None

    def episodes(self, tasks: StreamedTasks, fetched: PyTree, rng: Key) -> Episode:
        return jax.vmap(tasks.episode)(fetched)

    def blocks(self, calls: Calls) -> Generator[Block]:
        return read_ahead(self._read(calls))

    def first(self) -> PyTree:
        return self.tasks.fetch(jax.device_get(jax.jit(lambda: self._draw(jnp.int32(0)))()))

    def _draw(self, step: Array) -> PyTree:
        """Draws the tasks of a meta-step with the keys that `meta_batch` would use."""
        return jax.vmap(self.tasks.draw)(
            jax.random.split(self.task_rng(step), self.meta_batch_size)
        )

    def _read(self, calls: Calls) -> Iterator[Block]:
        draw = jax.jit(jax.vmap(self._draw))
        for first, length in calls:
            # All draws of a call at once: every request to the device waits for the device.
            draws = jax.device_get(draw(jnp.arange(first, first + length)))
            size = self._block_length(length)
            for start in range(0, length, size):
                part = jax.tree.map(lambda x, s=start, n=size: x[s : s + n], draws)
                yield Block(size, self._fetch(part))

    def _fetch(self, draws: PyTree) -> PyTree:
        """The arrays of tasks `[length, tasks, ...]`, on the devices that work on them."""
        if self.mesh is None:
            return jax.device_put(self.tasks.fetch(draws))
        shared = NamedSharding(self.mesh, PartitionSpec(None, TASKS))
        shape = jax.tree.leaves(draws)[0].shape[:2]
        slices = [own[1] for own in shared.addressable_devices_indices_map(shape).values() if own]
        # Devices in the order of the processes: those of one process have tasks in a row.
        first = min(each.start or 0 for each in slices)
        end = max(shape[1] if each.stop is None else each.stop for each in slices)
        fetched = self.tasks.fetch(jax.tree.map(lambda x: x[:, first:end], draws))
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(
                shared, np.asarray(x), (*shape, *np.shape(x)[2:])
            ),
            fetched,
        )

    def _block_length(self, length: int) -> int:
        return block_length(length, self.meta_batch_size * self.tasks.task_bytes)


@dataclasses.dataclass
class StreamSource:
    """Takes meta-batches from an iterator."""

    stream: Stream
    meta_batch_size: int
    mesh: Mesh | None = None
    # The iterator that `first` has opened, with what it took from it put back.
    opened: Iterator[Episode] | None = None

    @property
    def tasks(self) -> tuple[()]:
        return ()

    def episodes(self, tasks: tuple[()], fetched: Episode, rng: Key) -> Episode:
        return fetched

    def blocks(self, calls: Calls) -> Generator[Block]:
        return read_ahead(self._read(calls))

    def first(self) -> Episode:
        episodes = self._open(0)
        episode = self._next(episodes, 0)
        self.opened = itertools.chain([episode], episodes)
        return episode

    def _open(self, step: int) -> Iterator[Episode]:
        episodes, self.opened = self.opened, None
        if episodes is not None and step == 0:
            return episodes
        opened: Any = self.stream.open_at(step)
        try:
            return iter(opened)
        except TypeError:
            raise ValueError(
                "fit: open_at of the Stream must return an iterator of Episode, got "
                f"{type(opened).__name__}."
            ) from None

    def _next(self, episodes: Iterator[Episode], step: int) -> Episode:
        episode = next(episodes, None)
        if episode is None:
            raise ValueError(f"fit: the stream of episodes ended before meta-step {step}.")
        count = check_episodes(episode)
        if count != self.meta_batch_size:
            raise ValueError(
                f"fit: the stream's episode of meta-step {step} has {count} tasks, but "
                f"meta_batch_size={self.meta_batch_size}."
            )
        return jax.tree.map(np.asarray, episode)

    def _read(self, calls: Calls) -> Iterator[Block]:
        episodes: Iterator[Episode] | None = None
        for first, length in calls:
            if episodes is None:
                episodes = self._open(first)
            step, end = first, first + length
            while step < end:
                held = [self._next(episodes, step)]
                if step == first:
                    size = block_length(length, sum(x.nbytes for x in jax.tree.leaves(held)))
                held += [self._next(episodes, step + i) for i in range(1, size)]
                try:
                    stacked = jax.tree.map(lambda *x: np.stack(x), *held)
                except ValueError as error:
                    raise ValueError(
                        f"fit: the stream's episodes of the meta-steps {step} to {step + size - 1} "
                        f"differ in their shapes ({error}): pad them, with a mask."
                    ) from error
                step += size
                yield Block(size, self._put(stacked))

    def _put(self, stacked: Episode) -> Episode:
        if self.mesh is None:
            return jax.device_put(stacked)
        return jax.device_put(stacked, NamedSharding(self.mesh, PartitionSpec(None, TASKS)))


def block_length(length: int, step_bytes: int) -> int:
    """The largest divisor of `length` within `BLOCK_BYTES`: each block length is compiled."""
    most = max(1, BLOCK_BYTES // max(1, step_bytes))
    return next(n for n in range(min(length, most), 0, -1) if length % n == 0)


def read_ahead(items: Iterator[T]) -> Generator[T]:
    """Yields the items of an iterator, preparing the next one in a background thread.

    The thread ends when the generator is exhausted or closed. The generator raises the errors of
    the iterator.
    """
    with concurrent.futures.ThreadPoolExecutor(1, "metajax-stream") as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item


def advance(
    run: Callable[..., tuple[MetaState, Metrics]],
    state: MetaState,
    tasks: Any,
    blocks: Iterator[Block],
    num_steps: int,
) -> tuple[MetaState, Metrics]:
    """Makes `num_steps` meta-updates, block by block.

    Args:
      run: `(state, tasks, fetched, *, length) -> (state, metrics)`, metrics `[length, ...]`.
      state: consumed.
      tasks: passed to `run`.
      blocks: from `Source.blocks`; the call takes the next ones, up to its last meta-step.
      num_steps: the meta-steps of a call.

    Returns:
      The state after them, and their metrics as NumPy arrays `[num_steps, ...]`.
    """
    parts: list[Metrics] = []
    while num_steps > 0:
        length, fetched = next(blocks)
        state, metrics = run(state, tasks, fetched, length=length)
        num_steps -= length
        parts.append(metrics)
        if len(parts) > 1:  # wait, so that at most two blocks are on the device
            parts[-2] = jax.device_get(parts[-2])
    return state, jax.tree.map(lambda *x: np.concatenate(x), *jax.device_get(parts))
