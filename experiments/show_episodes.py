"""Draws tasks of a preset, so that one can see what a learner is given.

Command: python -m experiments.show_episodes --preset=finn2017/omniglot_5w1s --out=episodes.png

All flags of the experiment count, such as --ways=20 or --resample=nearest. The tasks of
meta-training have the queries of training, the others those of the evaluation.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import flags

from experiments import common, few_shot, plots, protocols
from metajax.tasks import TaskDistribution, meta_batch

flags.adopt_module_key_flags(few_shot)
OUT = flags.DEFINE_string("out", "episodes.png", "The picture to write.")
PART = flags.DEFINE_enum(
    "part", "train", ["train", "validation", "test"], "Of which classes the tasks are made."
)
NUM_TASKS = flags.DEFINE_integer("num_tasks", 4, "How many tasks to draw.", lower_bound=1)
NUM_SHOWN = flags.DEFINE_integer(
    "num_shown", 10, "Images per class to draw of support and of query.", lower_bound=1
)

DEFAULT = "finn2017/omniglot_5w1s"


class Shown(NamedTuple):
    """What a preset's tasks are.

    Attributes:
      tasks: batches are pairs `(images, labels)`, grouped by class.
      ways: classes per task.
      preset: the preset's name.
      seed: the root of its randomness.
    """

    tasks: TaskDistribution
    ways: int
    preset: str
    seed: int


def tasks_of_preset(part: str) -> Shown:
    """The tasks that the flags ask for, of meta-training, meta-validation or meta-test."""
    name = common.PRESET.value or DEFAULT
    families = [family for family, presets in protocols.PRESETS.items() if name in presets]
    if not families:
        raise common.UsageError(f"--preset={name} is unknown; --preset=list prints the presets.")
    presets, by_algorithm = protocols.PRESETS[families[0]], protocols.BY_ALGORITHM[families[0]]
    config = common.resolve(
        families[0], presets, name, by_algorithm, (*common.ALGORITHMS, *common.BASELINES)
    ).config
    data = few_shot.load(config)
    if not len(getattr(data, part)):
        raise common.UsageError(f"--part={part}: {name} has no such classes.")
    tasks = few_shot.tasks_of(config, data, part)
    return Shown(tasks, config["ways"], config["preset"], config["seed"])


def main() -> None:
    if common.PRESET.value == "list":
        for presets in protocols.PRESETS.values():
            few_shot.print_presets(presets)
        return
    shown = tasks_of_preset(PART.value)
    episodes = jax.jit(meta_batch, static_argnums=1)(
        shown.tasks, NUM_TASKS.value, jax.random.key(shown.seed)
    )

    def by_class(images) -> np.ndarray:
        images = np.asarray(images)
        return images.reshape(images.shape[0], shown.ways, -1, *images.shape[2:])

    out = Path(OUT.value)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        plots.contact_sheet(
            out,
            [*zip(by_class(episodes.support[0]), by_class(episodes.query[0]), strict=True)],
            title=f"{shown.preset}, classes of meta-{PART.value}",
            num_shown=NUM_SHOWN.value,
        )
    except (OSError, ValueError) as error:  # matplotlib refuses an unknown suffix with the latter
        raise common.UsageError(f"--out={out} cannot be written: {error}") from error
    print(out)


if __name__ == "__main__":
    common.run(main)
