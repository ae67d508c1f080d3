"""An audit of sampled tasks for images that support and query share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from metajax.base import Episode, Key, check_integer, split_key
from metajax.data.digests import alike, digests, groups
from metajax.tasks.base import TaskDistribution, as_tasks, meta_batch

_TASKS_PER_CALL = 20


def audit_episodes(
    tasks: TaskDistribution | Callable[[Key], Episode],
    rng: Key,
    num_tasks: int,
    *,
    rotations: bool = False,
) -> dict[str, int]:
    """Samples tasks and counts those whose support and query share images.

    Args:
      tasks: tasks with batches `(images, labels)`, such as `FewShot`.
      rng: a key.
      num_tasks: the number of tasks to sample.
      rotations: whether to look for tasks in which two classes are quarter turns of each other.
        This needs tasks with `images` and `draw`, such as `FewShot`, and hashes all images.

    Returns:
      A dict, ready for JSON, of the number of `tasks` and the numbers of faulty ones:

      - `shared_images`: an image of the query is also in the support, bit for bit. That happens
        with data sets that have the same image twice in a class.
      - `repeated_draws`, for tasks with `draw`: a class, or an example of a class, was drawn twice.
      - `rotated_classes`, with `rotations`: two classes are quarter turns of each other.

    Raises:
      ValueError: as in `as_tasks` and `meta_batch`; if batches are not pairs, or if `rotations` is
        set for tasks without `images` and `draw`.

    Example:
      >>> import jax, numpy as np
      >>> from metajax.tasks import FewShot, audit_episodes
      >>> images = np.random.default_rng(0).integers(0, 256, (6, 5, 8, 8, 1), np.uint8)
      >>> tasks = FewShot(images, ways=5, shots=1, queries=4)
      >>> audit_episodes(tasks, jax.random.key(0), 40)
      {'tasks': 40, 'shared_images': 0, 'repeated_draws': 0}
    """
    sampled = as_tasks(tasks)
    num_tasks = check_integer("num_tasks", num_tasks)
    keys = split_key(rng, -(-num_tasks // _TASKS_PER_CALL))
    shared = 0
    for call, key in enumerate(keys):
        count = min(_TASKS_PER_CALL, num_tasks - call * _TASKS_PER_CALL)
        episodes = jax.device_get(_sample(sampled, key))
        if not all(isinstance(batch, tuple | list) and len(batch) == 2 for batch in episodes):
            raise ValueError(
                "audit_episodes needs tasks with batches (images, labels), such as FewShot; the "
                "batches of these tasks are not pairs"
            )
        (support, _), (query, _) = episodes
        for one, other in zip(digests(support[:count]), digests(query[:count]), strict=True):
            shared += not {*one}.isdisjoint(other)
    report = {"tasks": num_tasks, "shared_images": shared}
    if not (hasattr(sampled, "draw") and hasattr(sampled, "images")):
        if rotations:
            raise ValueError(
                "rotations=True needs tasks with images and draw, such as FewShot, to know the "
                f"classes of a task; got {type(tasks).__name__}"
            )
        return report

    # The draws of the same episodes.
    draws = [jax.device_get(_draw(sampled, key)) for key in keys]
    classes = np.concatenate([draw.classes for draw in draws])[:num_tasks]
    examples = np.concatenate([draw.examples for draw in draws])[:num_tasks]
    repeated = _has_repeats(classes) | _has_repeats(examples).any(axis=1)
    report["repeated_draws"] = int(repeated.sum())
    if rotations:
        kinds = _kinds(sampled)
        report["rotated_classes"] = int(
            (_has_repeats(kinds[classes]) & ~_has_repeats(classes)).sum()
        )
    return report


@jax.jit
def _sample(tasks: TaskDistribution, rng: Key) -> Episode:
    return meta_batch(tasks, _TASKS_PER_CALL, rng)


@jax.jit
def _draw(tasks: Any, rng: Key) -> Any:
    return jax.vmap(tasks.draw)(jax.random.split(rng, _TASKS_PER_CALL))  # as `meta_batch` does


def _has_repeats(values: np.ndarray) -> np.ndarray:
    """Whether a value occurs twice along the last axis."""
    return (np.diff(np.sort(values, axis=-1), axis=-1) == 0).any(axis=-1)


def _kinds(tasks: Any) -> np.ndarray:
    """Numbers the classes, `[classes]`; quarter turns of each other get the same number."""
    images, counts = np.asarray(tasks.images), getattr(tasks, "counts", None)
    counts = np.full(len(images), images.shape[1]) if counts is None else np.asarray(counts)
    classes = [row[:count] for row, count in zip(images, counts, strict=True)]
    turned = groups({"": digests(classes, turned=True)})
    kinds = np.arange(len(images))
    for (_, row), (_, other) in alike(turned, {"": counts}):
        kinds[kinds == kinds[other]] = kinds[row]
    return kinds
