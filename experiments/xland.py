"""Rooms of XLand-MiniGrid with an object that pays, by meta-reinforcement learning.

Command:   python -m experiments.xland
Hardware:  1 CPU core
Expected:  a rising return. In trials so far it was the same in all episodes: the policy learned to
           try one object after another, not to remember which one paid. There is no record.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

import metajax
from experiments import agents, meta_rl
from experiments.command import Command, run
from experiments.meta_rl import MetaRL
from experiments.settings import UsageError, setting
from metajax import rl

SHOWN_TASKS = 3
VIEW, PIXELS = 5, 16  # cells that the agent sees each way, and the size of a cell
TRAINING_SHARE = 0.8


@dataclasses.dataclass(frozen=True)
class XLand(MetaRL):
    """Rooms with objects."""

    size: int = setting(7, "Height and width of the room, with its walls.", least=5)
    num_objects: int = setting(3, "Objects in the room, of which one pays.", least=1, most=5)
    horizon: int = setting(30, "The most steps per episode.", least=1)
    benchmark: str | None = setting(
        None,
        "A downloaded file of XLand's rule sets, of which a fifth is kept for testing, instead of "
        "rooms where one object pays. It is a pickle: name only a file that you trust.",
    )

    def unused(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        yield "the policy chooses among six actions", ("init_std", "min_std")
        if self.benchmark is not None:
            yield "the objects are those of the rule sets", ("num_objects",)
        yield from super().unused()


PRESETS = {
    "find_object": XLand(
        algorithm="rl2",
        num_meta_steps=400,
        meta_batch_size=20,
        trajectories=10,
        num_steps=0,
        surrogate="likelihood_ratio",
        outer_learning_rate=1e-3,
        entropy_bonus=0.01,
        gae_lambda=0.95,
        baseline="time",
        episodes=4,
        task_chunk=20,
        validation_steps=0,
        validate_every=10,
        checkpoint_every=50,
        eval_tasks=200,
        eval_trajectories=20,
        num_eval_steps=0,
    )
}


def make_env(settings: XLand, part: str = "training") -> rl.Env:
    """The environment with the tasks of training, or of testing."""
    from metajax.rl import xland

    own = {"size": settings.size, "horizon": settings.horizon}
    if settings.benchmark is None:
        return xland.find_object(**own, num_objects=settings.num_objects)
    import xminigrid
    from xminigrid.benchmarks import load_benchmark_from_path

    if not Path(settings.benchmark).exists():
        raise UsageError(f"--benchmark={settings.benchmark} does not exist.")
    shuffled = load_benchmark_from_path(settings.benchmark).shuffle(jax.random.key(0))
    chosen = dict(zip(("training", "testing"), shuffled.split(TRAINING_SHARE), strict=True))[part]
    room, params = xminigrid.make(
        "XLand-MiniGrid-R1-9x9",
        height=settings.size,
        width=settings.size,
        max_steps=settings.horizon,
    )
    return xland.from_xland(room, params, xland.rulesets(chosen))


def make_test_tasks(settings: XLand) -> Any:
    """The tasks of validation and testing."""
    return make_env(settings, "testing").sample_tasks


def draw(command: Command, agent: agents.Agent, state: metajax.MetaState, folder: Path) -> None:
    """Writes `rooms.gif`: the agent in three rooms after its last adaptation."""
    from xminigrid.rendering.rgb_render import render

    settings = command.settings
    inner = agents.rebuilt(settings, agent, settings.num_eval_steps, settings.trajectories)

    def run(task, rng):
        adapted, _ = inner.collect.apply(state.meta_params, task, rng)
        step = agents.played(agent, adapted, task, rng)
        if settings.algorithm == "rl2":
            step = step.state.inner  # that of the episode within the trial
        return step.state.state.grid, step.state.state.agent

    task_rng, rng = jax.random.split(jax.random.key(settings.seed + 4))
    tasks = make_test_tasks(settings)(task_rng, SHOWN_TASKS)
    shown = jax.jit(jax.vmap(run))(tasks, jax.random.split(rng, SHOWN_TASKS))
    grids, walker = jax.device_get(shown)
    frames = []
    for t in range(grids.shape[1]):
        rooms = [
            render(grids[i, t], jax.tree.map(lambda x, i=i, t=t: x[i, t], walker), VIEW, PIXELS)
            for i in range(SHOWN_TASKS)
        ]
        frames.append(Image.fromarray(np.concatenate(rooms, axis=1)))
    first, *others = frames
    first.save(folder / "rooms.gif", save_all=True, append_images=others, duration=150, loop=0)


EXPERIMENT = meta_rl.experiment(
    "xland",
    "Rooms of XLand-MiniGrid with an object that pays, by meta-reinforcement learning.",
    PRESETS,
    make_env,
    draw,
    make_test_tasks,
)

if __name__ == "__main__":
    run(EXPERIMENT)
