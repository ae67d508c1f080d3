"""Poles on carts with unknown motors, by meta-reinforcement learning, in a few minutes.

Command:   python -m experiments.cart_pole
Hardware:  1 CPU core
Expected:  a return that one gradient step raises by far more than its interval, on unseen tasks
Ours:      benchmarks/results/cart_pole, and docs/results.md
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import metajax
from experiments import agents, meta_rl, plots
from experiments.command import Command, run
from experiments.meta_rl import MetaRL
from experiments.settings import setting
from metajax import rl

SHOWN_TASKS = 3


@dataclasses.dataclass(frozen=True)
class CartPole(MetaRL):
    """A pole on a cart."""

    horizon: int = setting(100, "The most steps per trajectory.", least=1)

    def unused(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        yield "the policy chooses among two actions", ("init_std", "min_std")
        yield from super().unused()


PRESETS = {
    "motors": CartPole(
        num_meta_steps=60,
        meta_batch_size=20,
        trajectories=10,
        surrogate="likelihood_ratio",
        inner_learning_rate=0.5,
        gae_lambda=0.97,
        curvature_stride=2,
        validation_steps=1,
        validate_every=10,
        checkpoint_every=20,
        eval_tasks=100,
        eval_trajectories=20,
        num_eval_steps=3,
    )
}
PRESETS["motors_rl2"] = dataclasses.replace(
    PRESETS["motors"],
    algorithm="rl2",
    num_meta_steps=150,
    num_steps=0,
    outer_learning_rate=3e-3,
    task_chunk=20,
    steps_per_call=5,
    validation_steps=0,
    num_eval_steps=0,
)


def make_env(settings: CartPole) -> rl.Env:
    from metajax.rl.cart_pole import cart_pole

    return cart_pole(horizon=settings.horizon)


def draw(command: Command, agent: agents.Agent, state: metajax.MetaState, folder: Path) -> None:
    """The angle of the pole over time, before and after adaptation, or in the episodes of RL2."""
    remembers = command.settings.algorithm == "rl2"
    first = "rl2" if remembers else "before"
    num_steps = command.settings.num_eval_steps
    tasks, shown = jax.device_get(
        agents.adapted_trajectories(command.settings, agent, state, SHOWN_TASKS, num_steps)
    )
    panels: dict[str, Any] = {}
    for task in range(SHOWN_TASKS):
        name = f"push of {tasks['force_mag'][task]:.1f} N, pole of {tasks['length'][task]:.2f} m"
        angles = np.degrees(shown.observations[task, :, 0, :, 2])
        lengths = shown.mask[task, :, 0].sum(axis=-1).astype(int)
        panels[name] = {
            (f"after {step}" if step else first): [*enumerate(angles[step, :length])]
            for step, length in enumerate(lengths)
        }
    plots.lines(
        folder / "angles.png",
        panels,
        xlabel=None,
        ylabel="angle (degrees)",
        title="episodes with one memory" if remembers else "gradient steps",
    )


EXPERIMENT = meta_rl.experiment(
    "cart_pole",
    "Poles on carts with unknown motors, by meta-reinforcement learning, in a few minutes.",
    PRESETS,
    make_env,
    draw,
)

if __name__ == "__main__":
    run(EXPERIMENT)
