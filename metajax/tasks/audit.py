"""Looks for test data in the training data, and for queries among the supports."""

from __future__ import annotations

import collections
import concurrent.futures
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from metajax.base import Episode, Key, check_integer, split_key
from metajax.tasks.base import TaskDistribution, as_tasks, meta_batch

Splits = Mapping[str, tuple[Any, Sequence[str]]]
Place = tuple[str, int, int]  # split, class, example

_TASKS_PER_CALL = 20


def audit(splits: Splits, *, rotations: bool = False, cap: int = 20) -> dict[str, Any]:
    """Compares all classes and all images of the splits of a data set.

    Args:
      splits: by name, such as `"train"`: the images, uint8 `[classes, examples, height, width,
        channels]`, and the names of the classes.
      rotations: look also for classes that are quarter turns of one another, such as the rotated
        characters that some protocols add to Omniglot. Takes several times as long.
      cap: how many classes or pairs of images are named at most of each kind.

    Returns:
      JSON data:

      - `splits`: by name, the numbers of `classes` and `images`, and a digest of the class names,
        `classes_sha256`, which does not depend on their order; see `changed_classes`.
      - `disjoint`: whether no two splits share `classes`, and whether they share no `images`.
      - `shared_classes`: for every two splits that share classes, the `splits`, their `count`, and
        the `classes`.
      - `identical_images`: for every split and every two splits in which two images are the same
        to the bit, the `splits`, the `count` of such pairs, and `pairs` of `[class, example]`.
      - `rotated_classes`, with `rotations`: for every split and every two splits in which there are
        pairs of classes of which most images are quarter turns of those of the other, the
        `splits`, the `count` and the `pairs`.

    Raises:
      ValueError: the splits are none, their images have another type or rank or are of different
        sizes, the names are no strings or not as many as the classes; `cap` is no non-negative
        integer.

    Example:
      >>> import numpy as np
      >>> images = np.random.default_rng(0).integers(0, 256, (6, 5, 8, 8, 1), np.uint8)
      >>> images[5, 2] = images[0, 1]
      >>> found = audit({"train": (images[:4], "abcd"), "test": (images[4:], "ef")})
      >>> found["disjoint"]
      {'classes': True, 'images': False}
      >>> found["identical_images"]
      [{'splits': ['train', 'test'], 'count': 1, 'pairs': [[['a', 1], ['f', 2]]]}]

    References:
      Rajeswaran et al., Meta-Learning with Implicit Gradients, 2019: the released evaluation deals
      the characters of Omniglot out with another seed than the training.
    """
    check_integer("cap", cap, minimum=0)
    try:
        names = {split: tuple(of_split) for split, (_, of_split) in splits.items()}
        images = {split: np.asarray(of_split) for split, (of_split, _) in splits.items()}
    except (AttributeError, TypeError, ValueError):
        raise ValueError(
            'splits must be a dict of images and class names, such as {"train": (images, names)}'
        ) from None
    # The same image in another type or size would not be found.
    for split, of_split in images.items():
        if of_split.dtype != np.uint8 or of_split.ndim != 5:
            raise ValueError(
                f"the images of {split} must be uint8 [classes, examples, height, width, "
                f"channels], got {of_split.dtype} {of_split.shape}"
            )
        if len(names[split]) != len(of_split):
            raise ValueError(f"{split} has {len(names[split])} names for {len(of_split)} classes")
        if not all(isinstance(name, str) for name in names[split]):
            raise ValueError(f"the class names of {split} must be strings; use map(str, names)")
    shapes = {split: of_split.shape[2:] for split, of_split in images.items()}
    if len({*shapes.values()}) != 1:
        raise ValueError(f"the splits must hold images of one size, got {shapes}")

    shared: list[dict[str, Any]] = []
    for one, other in itertools.combinations(splits, 2):
        both = sorted({*names[one]} & {*names[other]})
        if both:
            shared.append({"splits": [one, other], "count": len(both), "classes": both[:cap]})

    def group(digests: Mapping[str, list[list[bytes]]]) -> Iterable[list[Place]]:
        places: dict[bytes, list[Place]] = collections.defaultdict(list)
        for split, of_split in digests.items():
            for row, of_class in enumerate(of_split):
                for column, digest in enumerate(of_class):
                    places[digest].append((split, row, column))
        return [group for group in places.values() if len(group) > 1]

    identical = _Pairs(cap)
    for places in group({split: _digests(images[split]) for split in splits}):
        for pair in itertools.combinations(places, 2):
            named = [[names[split][row], column] for split, row, column in pair]
            identical.add(pair[0][0], pair[1][0], named)

    report = {
        "splits": {
            split: {
                "classes": len(names[split]),
                "images": int(np.prod(images[split].shape[:2])),
                "classes_sha256": _digest("\n".join(sorted(names[split])).encode()).hex(),
            }
            for split in splits
        },
        "disjoint": {
            "classes": not shared,
            "images": all(one == other for one, other in identical.found),
        },
        "shared_classes": shared,
        "identical_images": identical.report(),
    }
    if rotations:
        rotated = _Pairs(cap)
        turned = group({split: _digests(images[split], turned=True) for split in splits})
        examples = {split: images[split].shape[1] for split in splits}
        for (one, row), (other, column) in _alike(turned, examples):
            rotated.add(one, other, [names[one][row], names[other][column]])
        report["rotated_classes"] = rotated.report()
    return report


def changed_classes(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Names the splits whose classes are not those of an earlier audit.

    Evaluating with another split of the classes than the one that was trained with puts training
    classes into the test.

    Args:
      recorded: what `audit` returned at training.
      current: what it returns now.

    Raises:
      ValueError: one of them is no report of `audit`.

    Example:
      >>> import numpy as np
      >>> images = np.zeros((2, 1, 8, 8, 1), np.uint8)
      >>> one, other = (audit({"test": (images, names)}) for names in ("ab", "ac"))
      >>> changed_classes(one, one), changed_classes(one, other)
      ([], ['test'])
    """
    try:
        digests = [
            {split: of_split["classes_sha256"] for split, of_split in report["splits"].items()}
            for report in (recorded, current)
        ]
    except (AttributeError, KeyError, TypeError):
        raise ValueError("changed_classes compares two reports that audit returned") from None
    return sorted(
        split
        for split in digests[0].keys() | digests[1].keys()
        if digests[0].get(split) != digests[1].get(split)
    )


def audit_episodes(
    tasks: TaskDistribution | Callable[[Key], Episode],
    rng: Key,
    num_tasks: int,
    *,
    rotations: bool = False,
) -> dict[str, int]:
    """Looks into sampled tasks for images that support and query share.

    Args:
      tasks: whose batches are pairs `(images, labels)`, such as `FewShot`.
      rng: a key.
      num_tasks: how many to sample.
      rotations: look for tasks in which two classes are quarter turns of each other. For tasks
        that have `images` and can be drawn, as `FewShot`; takes a hash of all of the images.

    Returns:
      JSON data: `tasks`, and how many of them are faulty in each way:

      - `shared_images`: an image of the query is also in the support, to the bit. A data set with
        the same image twice in a class has some of these.
      - `repeated_draws`, for tasks that can be drawn: a class was drawn twice, or an example of it.
      - `rotated_classes`, with `rotations`.

    Raises:
      ValueError: as `as_tasks` and `meta_batch`; or batches are no pairs, or `rotations` is set for
        tasks that cannot be drawn.

    Example:
      >>> import jax, numpy as np
      >>> from metajax.tasks import FewShot
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
                "audit_episodes needs tasks whose batches are pairs (images, labels), such as "
                "FewShot; these are others"
            )
        (support, _), (query, _) = episodes
        for one, other in zip(_digests(support[:count]), _digests(query[:count]), strict=True):
            shared += not {*one}.isdisjoint(other)
    report = {"tasks": num_tasks, "shared_images": shared}
    if not (hasattr(sampled, "draw") and hasattr(sampled, "images")):
        if rotations:
            raise ValueError(
                "rotations=True needs tasks with images and draw, such as FewShot, to know which "
                f"classes a task is made of; got {type(tasks).__name__}"
            )
        return report

    # The draws behind the same episodes.
    draws = [jax.device_get(_draw(sampled, key)) for key in keys]
    classes = np.concatenate([draw.classes for draw in draws])[:num_tasks]
    examples = np.concatenate([draw.examples for draw in draws])[:num_tasks]
    repeated = _has_repeats(classes) | _has_repeats(examples).any(axis=1)
    report["repeated_draws"] = int(repeated.sum())
    if rotations:
        kinds = _kinds(np.asarray(sampled.images))
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


def _kinds(images: np.ndarray) -> np.ndarray:
    """Numbers the classes `[classes]`; those that are quarter turns of each other get the same."""
    places = collections.defaultdict(list)
    for row, of_class in enumerate(_digests(images, turned=True)):
        for column, digest in enumerate(of_class):
            places[digest].append(("", row, column))
    kinds = np.arange(len(images))
    for (_, row), (_, other) in _alike(places.values(), {"": images.shape[1]}):
        kinds[kinds == kinds[other]] = kinds[row]
    return kinds


def _alike(
    groups: Iterable[list[Place]], examples: Mapping[str, int]
) -> list[tuple[tuple[str, int], tuple[str, int]]]:
    """The pairs of different classes that have more than half of their images in common."""
    common: collections.Counter = collections.Counter()
    for places in groups:
        # A class counts once, however often it has the image.
        classes = dict.fromkeys((split, row) for split, row, _ in places)
        common.update(itertools.combinations(classes, 2))
    return [
        pair
        for pair, count in common.items()
        if 2 * count > min(examples[split] for split, _ in pair)
    ]


class _Pairs:
    """Counts pairs by the two splits that they are from, and keeps a few."""

    def __init__(self, cap: int):
        self._cap = cap
        self.found: dict[tuple[str, str], tuple[int, list[Any]]] = {}

    def add(self, one: str, other: str, pair: list[Any]) -> None:
        count, pairs = self.found.setdefault((one, other), (0, []))
        self.found[one, other] = (count + 1, [*pairs, pair] if len(pairs) < self._cap else pairs)

    def report(self) -> list[dict[str, Any]]:
        return [
            {"splits": [*splits], "count": count, "pairs": pairs}
            for splits, (count, pairs) in self.found.items()
        ]


def _digests(images: np.ndarray, *, turned: bool = False) -> list[list[bytes]]:
    """A digest of each of `images [classes, examples, height, width, channels]`.

    With `turned`, quarter turns of an image have the same one.
    """

    def of_class(examples: np.ndarray) -> list[bytes]:
        examples = np.ascontiguousarray(examples)
        digests = [_digest(example) for example in examples]
        if turned:
            for k in (1, 2, 3):
                turned_by_k = np.ascontiguousarray(np.rot90(examples, k, axes=(1, 2)))
                digests = [*map(min, digests, map(_digest, turned_by_k))]
        return digests

    # Hashing releases the lock of the interpreter for all but small images.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(of_class, images))


def _digest(data: Any) -> bytes:
    return hashlib.sha256(data).digest()
