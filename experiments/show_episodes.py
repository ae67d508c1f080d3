"""Draws tasks of a preset, as the learner receives them.

Command: python -m experiments.show_episodes --preset=finn2017/omniglot_5w1s --out=episodes.png

It takes the flags of the experiment that concern tasks and images, such as --ways=20 or
--resample=nearest. The tasks of meta-training have the queries of training, the others those of the
evaluation.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np

from experiments import (
    classification,
    few_shot,
    image_data,
    miniimagenet,
    omniglot,
    photographs,
    plots,
    protocols,
)
from experiments.command import Command, Experiment, run
from experiments.settings import Launch, UsageError, setting, setting_rules
from metajax.tasks import meta_batch

# The settings that decide what is drawn.
OF_TASKS = (
    "algorithm",
    "seed",
    "ways",
    "train_ways",
    "shots",
    "train_shots",
    "queries",
    "eval_queries",
    "train_on",
    "rotation",
    "split",
    "resample",
    "invert",
)
FAMILIES = (omniglot.EXPERIMENT, miniimagenet.EXPERIMENT, photographs.EXPERIMENT)


@dataclasses.dataclass(frozen=True)
class Shown(image_data.DataLaunch):
    """What is drawn."""

    out: str = setting("episodes.png", "The picture to write.")
    part: str = setting(
        "train",
        "Of which classes the tasks are made.",
        choices=("train", "validation", "test"),
    )
    num_tasks: int = setting(4, "How many tasks to draw.", least=1, most=1_000)
    num_shown: int = setting(
        10, "Images per class to draw of support and of query.", least=1, most=1_000
    )


def execute(command: Command) -> int:
    """Draws the picture."""
    settings, launch = command.settings, command.launch
    data = image_data.load(settings, launch.data_dir)
    if not len(getattr(data, launch.part)):
        raise UsageError(f"--part={launch.part}: {command.preset} has no such classes.")
    tasks = image_data.make_tasks(settings, data, launch.part)
    episodes = jax.jit(meta_batch, static_argnums=1)(
        tasks, launch.num_tasks, jax.random.key(settings.seed)
    )

    ways = settings.ways
    if launch.part == "train":
        ways = settings.train_ways or ways

    def by_class(images) -> np.ndarray:
        images = np.asarray(images)
        return images.reshape(images.shape[0], ways, -1, *images.shape[2:])

    out = Path(launch.out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        plots.contact_sheet(
            out,
            [*zip(by_class(episodes.support[0]), by_class(episodes.query[0]), strict=True)],
            title=f"{command.preset}, classes of meta-{launch.part}",
            num_shown=launch.num_shown,
        )
    except (OSError, ValueError) as error:  # matplotlib raises ValueError for an unknown suffix
        raise UsageError(f"--out={out} cannot be written: {error}") from error
    print(out)
    return 0


EXPERIMENT = Experiment(
    "show_episodes",
    "Draws tasks of a preset of image classification.",
    {name: preset for family in FAMILIES for name, preset in family.presets.items()},
    execute,
    few_shot.print_presets,
    protocols.BY_ALGORITHM,
    Shown(),
    hidden=[
        name
        for kind in (classification.Omniglot, Launch)
        for name in setting_rules(kind)
        if name not in (*OF_TASKS, "preset")
    ],
    trains=False,
)

if __name__ == "__main__":
    run(EXPERIMENT)
