"""Looks for test data in the training data: classes and images that splits share."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from metajax.base import check_integer
from metajax.data.digests import alike, digest, digests, groups
from metajax.data.images import Images, Splits


def audit(
    splits: Splits | Mapping[str, Images], *, rotations: bool = False, cap: int = 20
) -> dict[str, Any]:
    """Compares all classes and all images of the splits of a data set.

    Args:
      splits: the sets of classes, or a dict of `Images` by any names. Sets without classes are
        passed over.
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
      ValueError: `splits` are no `Images`, none of them has a class, or their images have different
        shapes; `cap` is no non-negative integer.

    Example:
      >>> import numpy as np
      >>> array = np.random.default_rng(0).integers(0, 256, (6, 5, 8, 8, 1), np.uint8)
      >>> array[5, 2] = array[0, 1]
      >>> train, test = Images(array[:4], ("a", "b", "c", "d")), Images(array[4:], ("e", "f"))
      >>> found = audit({"train": train, "test": test})
      >>> found["disjoint"]
      {'classes': True, 'images': False}
      >>> found["identical_images"]
      [{'splits': ['train', 'test'], 'count': 1, 'pairs': [[['a', 1], ['f', 2]]]}]

    References:
      Rajeswaran et al., Meta-Learning with Implicit Gradients, 2019: the released evaluation deals
      the characters of Omniglot out with another seed than the training.
    """
    check_integer("cap", cap, minimum=0)
    parts = _parts(splits)
    names = {split: images.names for split, images in parts.items()}

    shared: list[dict[str, Any]] = []
    for one, other in itertools.combinations(parts, 2):
        both = sorted({*names[one]} & {*names[other]})
        if both:
            shared.append({"splits": [one, other], "count": len(both), "classes": both[:cap]})

    identical = _Pairs(cap)
    for places in groups({split: digests(images) for split, images in parts.items()}):
        for pair in itertools.combinations(places, 2):
            named = [[names[split][row], column] for split, row, column in pair]
            identical.add(pair[0][0], pair[1][0], named)

    report = {
        "splits": {
            split: {
                "classes": len(images),
                "images": int(images.counts.sum()),
                "classes_sha256": digest("\n".join(sorted(images.names)).encode()).hex(),
            }
            for split, images in parts.items()
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
        turned = groups({split: digests(images, turned=True) for split, images in parts.items()})
        counts = {split: images.counts for split, images in parts.items()}
        for (one, row), (other, column) in alike(turned, counts):
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
      >>> array = np.zeros((2, 1, 8, 8, 1), np.uint8)
      >>> one, other = (audit({"test": Images(array, tuple(names))}) for names in ("ab", "ac"))
      >>> changed_classes(one, one), changed_classes(one, other)
      ([], ['test'])
    """
    try:
        digests = [
            {split: entry["classes_sha256"] for split, entry in report["splits"].items()}
            for report in (recorded, current)
        ]
    except (AttributeError, KeyError, TypeError):
        raise ValueError("changed_classes compares two reports that audit returned") from None
    return sorted(
        split
        for split in digests[0].keys() | digests[1].keys()
        if digests[0].get(split) != digests[1].get(split)
    )


def _parts(splits: Any) -> dict[str, Images]:
    """The splits that have classes, by name."""
    if isinstance(splits, Splits):
        splits = splits._asdict()
    if not isinstance(splits, Mapping) or not all(isinstance(i, Images) for i in splits.values()):
        raise ValueError(
            'splits must be metajax.data.Splits, or a dict of Images such as {"train": images}'
        )
    parts = {split: images for split, images in splits.items() if len(images)}
    # The same image in another size would not be found.
    shapes = {split: images.image_shape for split, images in parts.items()}
    if len({*shapes.values()}) != 1:
        raise ValueError(f"the splits must hold images of one size, got {shapes}")
    return parts


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
