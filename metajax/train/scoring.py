"""Scores over many test tasks, in as many compiled calls as memory requires."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from metajax.base import Adapt, Key, MetaParams, MetaState, PyTree, check_integer
from metajax.evaluate import score_tasks, summarize
from metajax.parallel import TASKS, check_mesh
from metajax.tasks import TaskDistribution, as_tasks, meta_batch
from metajax.train.processes import on_mesh

Scores = dict[str, Any]


def scorer(
    adapt: Adapt,
    metric: PyTree,
    *,
    tasks_per_call: int | None = None,
    task_chunk: int | None = None,
    mesh: Mesh | None = None,
    progress: str | None = None,
) -> Callable[[MetaState | MetaParams, TaskDistribution, int, Key], Scores]:
    """Compiles `metajax.evaluate` for many states and tasks.

    Args:
      adapt: an inner loop, such as `learner.inner.rebuild(num_steps=10)`.
      metric: as in `metajax.evaluate`.
      tasks_per_call: tasks that one compiled call samples and scores; fewer need less memory. By
        default all tasks, drawn from `key`. Otherwise call `i` draws its tasks from
        `fold_in(key, i)`, so the tasks depend on this number.
      task_chunk: tasks per `vmap`, see `meta_learner`.
      mesh: devices whose axis `"tasks"` shares the tasks; `tasks_per_call` is rounded up to a
        multiple of its size.
      progress: the title of a progress bar over the calls; `None` for no bar.

    Returns:
      `score(state, tasks, num_tasks, key)`, the result of `metajax.evaluate` over the tasks of all
      calls, in NumPy arrays. Each number of tasks in a call is compiled once, for all states and
      tasks of the same shapes.

    Raises:
      ValueError: as `metajax.evaluate`, for a mesh without an axis `"tasks"`, or if a number of
        tasks is not a positive integer.

    Example:

    >>> import jax, jax.numpy as jnp, optax, metajax
    >>> from metajax import train
    >>> loss = metajax.squared_error(lambda params, x: x * params)
    >>> learner = metajax.maml(loss, optax.sgd(0.01), optax.adam(1e-3))
    >>> score = train.scorer(
    ...     learner.inner.rebuild(num_steps=3), metajax.mse(lambda params, x: x * params),
    ...     tasks_per_call=4)
    >>> scores = score(
    ...     learner.init(jnp.ones(())), metajax.tasks.Sinusoid(), 10, jax.random.key(0))
    >>> scores["mean"].shape, scores["num_tasks"]
    ((4,), 10)
    """
    check_mesh("scorer: mesh", mesh)
    if tasks_per_call is not None:
        tasks_per_call = check_integer("scorer: tasks_per_call", tasks_per_call)
        if mesh is not None:
            shares = mesh.shape[TASKS]
            tasks_per_call = -(-tasks_per_call // shares) * shares

    everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())

    @partial(jax.jit, out_shardings=everywhere)
    def scored(state, episodes, rng):
        return score_tasks(adapt, metric, state, episodes, rng, task_chunk=task_chunk, mesh=mesh)

    def sampled_and_scored(state, tasks, key, count):
        task_rng, rng = jax.random.split(key)
        return scored(state, meta_batch(tasks, count, task_rng), rng)

    in_one_program = jax.jit(sampled_and_scored, static_argnums=3, out_shardings=everywhere)

    def score(
        state: MetaState | MetaParams, tasks: TaskDistribution, num_tasks: int, key: Key
    ) -> Scores:
        num_tasks, tasks = check_integer("scorer: num_tasks", num_tasks), as_tasks(tasks)
        state, tasks = on_mesh(mesh, (state, tasks))
        if tasks_per_call is None:
            found = jax.device_get(sampled_and_scored(state, tasks, key, num_tasks))
            return jax.device_get(summarize(found))
        starts = range(0, num_tasks, tasks_per_call)
        scores = []
        for call, start in enumerate(tqdm(starts, progress, disable=None if progress else True)):
            count = min(tasks_per_call, num_tasks - start)
            call_key = jax.random.fold_in(key, call)
            scores.append(jax.device_get(in_one_program(state, tasks, call_key, count)))
        together = jax.tree.map(lambda *parts: np.concatenate(parts), *scores)
        return jax.device_get(summarize(together))

    return score
