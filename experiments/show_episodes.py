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

from experiments import common, omniglot, plots
from metajax.tasks import FewShot, meta_batch
from metajax.tasks import omniglot as data

flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(omniglot)
OUT = flags.DEFINE_string("out", "episodes.png", "The picture to write.")
PART = flags.DEFINE_enum(
    "part", "train", ["train", "validation", "test"], "Of which classes the tasks are made."
)
NUM_TASKS = flags.DEFINE_integer("num_tasks", 4, "How many tasks to draw.", lower_bound=1)
NUM_SHOWN = flags.DEFINE_integer(
    "num_shown", 10, "Images per class to draw of support and of query.", lower_bound=1
)


class Shown(NamedTuple):
    """What a preset's tasks are.

    Attributes:
      tasks: batches are pairs `(images, labels)`, grouped by class.
      ways: classes per task.
      preset: the preset's name.
      seed: the root of its randomness.
    """

    tasks: FewShot
    ways: int
    preset: str
    seed: int


def tasks_of_preset(part: str) -> Shown:
    """The tasks that the flags ask for, of meta-training, meta-validation or meta-test."""
    settings = common.resolve(
        "omniglot", omniglot.PRESETS, "finn2017/omniglot_5w1s", omniglot.BY_ALGORITHM
    )
    config = settings.config
    with common.as_usage_error():
        loaded = data.load(
            omniglot.DATA_DIR.value, split=config["split"], resample=config["resample"]
        )
        shots, queries = config["shots"], config["eval_queries"]
        if part == "train":
            shots, queries = config["train_shots"] or shots, config["queries"]
        tasks = omniglot.tasks_of(config, getattr(loaded, part), shots, queries)
    return Shown(tasks, config["ways"], config["preset"], config["seed"])


def main() -> None:
    if common.PRESET.value == "list":
        common.print_presets(omniglot.PRESETS, ("ways", "shots"))
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
