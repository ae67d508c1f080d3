"""Images for few-shot classification: loading, sampling and the audit of leaks."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import metajax
from experiments.classification import BASELINES, FewShot
from experiments.command import Command, as_usage_error
from experiments.settings import Launch, UsageError, setting
from metajax import data as datasets
from metajax import train
from metajax.data import Splits
from metajax.tasks import audit_episodes, few_shot_tasks

AUDITED_TASKS = 100


@dataclasses.dataclass(frozen=True)
class DataLaunch(Launch):
    """Where the data are."""

    data_dir: str | None = setting(
        None,
        "Where the data are: those of TensorFlow Datasets (by default $TFDS_DATA_DIR, or as TFDS "
        "has it), Mini-ImageNet (by default $MINI_IMAGENET_DIR or ~/mini-imagenet), or your own "
        "images.",
    )


def load(settings: FewShot, data_dir: str | None) -> Splits:
    """Reads the data and applies the protocol's changes that are the same for all tasks."""
    wanted = datasets.DATA_SETS[settings.dataset].settings
    with as_usage_error():
        data = datasets.load(
            settings.dataset,
            data_dir,
            **{name: getattr(settings, name) for name in wanted if hasattr(settings, name)},
        )
    data = _large_enough(settings, data)
    if settings.train_on == "train+validation":
        data = data.merged()
    if not getattr(settings, "invert", True):
        data = data.inverted()
    return data.with_quarter_turns() if settings.rotation == "classes" else data


def _large_enough(settings: FewShot, data: Splits) -> Splits:
    """Leaves out the classes that are too small for a task, and says so.

    Classes that are all of one size stay: the tasks tell what is missing.
    """
    trained = (settings.train_shots or settings.shots) + settings.queries
    if settings.algorithm in BASELINES:  # they are not trained on episodes
        trained = 1
    needed = max(trained, settings.shots + settings.eval_queries)
    kept = Splits(*(part.with_at_least(needed) if np.ptp(part.counts) else part for part in data))
    left_out = sum(map(len, data)) - sum(map(len, kept))
    if left_out:
        print(f"left out, for less than {needed} images: {left_out} classes")
    return kept


def make_tasks(settings: FewShot, data: Splits, part: str) -> metajax.tasks.TaskDistribution:
    """The tasks of `"train"`, `"validation"` or `"test"`."""
    ways, shots, queries = settings.ways, settings.shots, settings.eval_queries
    if part == "train":
        ways, shots = settings.train_ways or ways, settings.train_shots or shots
        queries = settings.queries
    with as_usage_error():
        return few_shot_tasks(
            getattr(data, part),
            ways=ways,
            shots=shots,
            queries=queries,
            rotate=settings.rotation == "task",
        )


def blank_image(data: Splits) -> jax.Array:
    """An empty image, for the initialization of a network."""
    return jnp.zeros((1, *data.train.image_shape))


def look_for_leaks(command: Command, data: Splits, tasks: Any, test_tasks: Any) -> dict[str, Any]:
    """Audits splits and episodes, and raises an error if training would use test classes.

    The audit is stored in the workdir. Thus a run that is continued or evaluated again with another
    split of the classes is detected.
    """
    settings = command.settings
    drawings = datasets.DATA_SETS[settings.dataset].drawings
    found = datasets.audit(data, rotations=drawings)
    key = jax.random.fold_in(jax.random.key(settings.seed), 3)
    found["episodes"] = {"test": audit_episodes(test_tasks, key, AUDITED_TASKS, rotations=drawings)}
    if settings.algorithm not in BASELINES:  # the baselines do not learn from episodes
        found["episodes"]["train"] = audit_episodes(tasks, key, AUDITED_TASKS)
    path = command.workdir / "audit.json"
    if path.exists():
        with as_usage_error():
            changed = datasets.changed_classes(train.read_json(path), found)
        if changed:
            raise UsageError(
                f"the classes of {', '.join(changed)} are not those that {path} says the run was "
                "trained with: testing would be on classes that were trained on. Use the same data."
            )
    elif not command.evaluates_only and train.is_first():
        train.write_json(path, found)
    if not found["disjoint"]["classes"]:
        raise UsageError(f"the sets share classes: {found['shared_classes']}.")
    if not found["disjoint"]["images"]:
        across = [
            f"{pairs['count']} of {' and '.join(pairs['splits'])}"
            for pairs in found["identical_images"]
            if len({*pairs["splits"]}) > 1
        ]
        print(f"identical images in two sets of classes: {', '.join(across)} (audit.json)")
    return found
