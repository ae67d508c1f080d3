"""Meta-batches from the host, read while the device works on those before."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from metajax.base import Array, Key, MetaState, Metrics, PyTree
from metajax.tasks.base import StreamedTasks

# A compiled call takes as many meta-steps as fit in here; up to four such blocks exist at a time.
BLOCK_BYTES = 64 * 2**20


Run = Callable[..., tuple[MetaState, Metrics]]


def draws(tasks: StreamedTasks, meta_batch_size: int, rng: Key) -> PyTree:
    """What makes up a meta-batch, drawn as `meta_batch` does."""
    return jax.vmap(tasks.draw)(jax.random.split(rng, meta_batch_size))


class Stream:
    """Reads meta-batches ahead, one block of meta-steps at a time, in a background thread.

    Args:
      tasks: what to read from.
      meta_batch_size: tasks per meta-step.
      rng_at: `step -> rng` of its meta-batch; pure.
      calls: the `(first step, number of steps)` of all calls to come, in order.
    """

    def __init__(
        self,
        tasks: StreamedTasks,
        meta_batch_size: int,
        rng_at: Callable[[Array], Key],
        calls: Iterable[tuple[int, int]],
    ):
        def draw(step):
            return draws(tasks, meta_batch_size, rng_at(step))

        self._tasks, self._draw = tasks, jax.jit(jax.vmap(draw))
        self._step_bytes = meta_batch_size * tasks.task_bytes
        self._blocks = self._read(calls)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "metajax-stream")
        self._next = self._thread.submit(next, self._blocks, None)

    def advance(self, run: Run, state: MetaState, length: int) -> tuple[MetaState, Metrics]:
        """Makes the next call, block by block.

        Args:
          run: `(state, tasks, block, *, length) -> (state, metrics)`, leaves of the block
            `[length, tasks, ...]`, of the metrics `[length, ...]`.
          state: consumed.
          length: the meta-steps of the call.
        """
        size = self._block_length(length)
        parts: list[Metrics] = []
        for _ in range(0, length, size):
            block = self._next.result()
            self._next = self._thread.submit(next, self._blocks, None)
            state, metrics = run(state, self._tasks, block, length=size)
            parts.append(metrics)
            if len(parts) > 1:  # waits, so that no more than two blocks are on the device
                parts[-2] = jax.device_get(parts[-2])
        return state, jax.tree.map(lambda *x: np.concatenate(x), *jax.device_get(parts))

    def close(self) -> None:
        """Ends the thread, once it has read the block that it is at."""
        self._thread.shutdown(cancel_futures=True)

    def _read(self, calls: Iterable[tuple[int, int]]) -> Iterator[PyTree]:
        for first, length in calls:
            # The indices of the whole call: asking the device more often would wait more often.
            draws = jax.device_get(self._draw(jnp.arange(first, first + length)))
            size = self._block_length(length)
            for start in range(0, length, size):
                block = jax.tree.map(lambda x, s=start, n=size: x[s : s + n], draws)
                yield jax.device_put(self._tasks.fetch(block))

    def _block_length(self, length: int) -> int:
        """The largest divisor of `length` that `BLOCK_BYTES` admits: every length is compiled."""
        most = max(1, BLOCK_BYTES // max(1, self._step_bytes))
        return next(n for n in range(min(length, most), 0, -1) if length % n == 0)
