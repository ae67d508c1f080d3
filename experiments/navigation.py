"""2D navigation by meta-reinforcement learning: Finn 2017, section 5.3, figure 4.

Command:   python -m experiments.navigation
Hardware:  2 CPU cores
The paper: mean return of -11.68, -3.33 and -3.23 after 1, 2 and 3 gradient steps
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np

import metajax
from experiments import agents, meta_rl, plots
from experiments.command import Command, run
from experiments.meta_rl import MetaRL
from experiments.settings import setting
from metajax import rl

SHOWN_TASKS = 4
SHOWN_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Navigation(MetaRL):
    """2D navigation."""

    # The table of metajax.rl.navigation: gymnax uses JAX as it is imported, which fixes the
    # devices.
    reward: str = setting(
        "distance",
        "Minus the distance, as in the published returns, or its square, as in the paper's text.",
        choices=("distance", "squared"),
    )


FINN = Navigation(**meta_rl.FINN)
PRESETS = {
    # With the paper's settings the policy's standard deviation falls without end. Advantages are
    # standardized, so they tell the direction of the goal, but its distance only within the reach
    # of the noise. With little noise later gradient steps overshoot. Here the standard deviation is
    # bounded below, the meta-objective averages over both of two gradient steps, and the trust
    # region shrinks to 0. First order does not account for the length of a gradient step, and
    # overshoots near goals. The likelihood ratio has less noise in its second derivatives. An
    # action changes the distance at once, so a smaller lambda for the advantages suffices.
    "two_steps": dataclasses.replace(
        FINN,
        surrogate="likelihood_ratio",
        num_meta_steps=220,
        num_steps=2,
        every_step=True,
        gae_lambda=0.97,
        curvature_stride=10,
        max_kl=0.02,
        outer_schedule="linear",
        init_std=0.38,
        min_std=0.38,
    ),
    "finn2017": FINN,
}


def make_env(settings: Navigation) -> rl.Env:
    from metajax.rl.navigation import navigation

    return navigation(settings.reward)


def draw(command: Command, agent: agents.Agent, state: metajax.MetaState, folder: Path) -> None:
    """Figure 4's trajectories."""
    settings = command.settings
    num_steps = min(SHOWN_STEPS, settings.num_eval_steps)
    tasks, shown = jax.device_get(
        agents.adapted_trajectories(settings, agent, state, SHOWN_TASKS, num_steps)
    )
    # The oracle's observations also contain the goal, after the position.
    paths = np.where(shown.mask[..., None] > 0, shown.observations[..., :2], np.nan)
    plots.paths(folder / "trajectories.png", tasks["goal"], paths[:, :, 0])


EXPERIMENT = meta_rl.experiment(
    "navigation",
    "2D navigation by meta-reinforcement learning: Finn 2017, figure 4.",
    PRESETS,
    make_env,
    draw,
)

if __name__ == "__main__":
    run(EXPERIMENT)
