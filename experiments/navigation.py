"""2D navigation by meta-reinforcement learning: Finn 2017, section 5.3, figure 4.

Command:   python -m experiments.navigation
Hardware:  2 CPU cores
The paper: mean return of -11.68, -3.33 and -3.23 after 1, 2 and 3 gradient steps
"""

from __future__ import annotations

import jax
import numpy as np
from absl import flags

import metajax
from experiments import common, meta_rl, plots
from metajax import rl

flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(meta_rl)

# The table of metajax.rl.navigation; gymnax uses JAX as it is imported, which fixes its devices.
REWARDS = ("distance", "squared")
flags.DEFINE_enum(
    "reward",
    None,
    REWARDS,
    "Minus the distance, as in the published returns, or its square, as in the paper's text"
    + common.BY_PRESET,
)

FINN: common.Config = {
    **meta_rl.DEFAULTS,
    "reward": "distance",
    "meta_batch_size": 20,
    "steps_per_call": 10,
    "validate_every": 10,
    "checkpoint_every": 50,
}
PRESETS: common.Presets = {
    # Trained as in the paper, the policy's standard deviation falls without end. Standardized
    # advantages of a distance say where the goal is, and how far only within the reach of the
    # noise: with less of it, later gradient steps overshoot. Here the noise has a floor, the
    # policies are judged after both of two gradient steps, and the trust region shrinks to nothing.
    # First order does not see how far a gradient step goes: near goals are overshot with it. The
    # likelihood ratio has the second derivative of less noise, and what an action does to a
    # distance shows soon, so that advantages need no long memory.
    "two_steps": {
        **FINN,
        "surrogate": "likelihood_ratio",
        "num_meta_steps": 220,
        "num_steps": 2,
        "every_step": True,
        "gae_lambda": 0.97,
        "curvature_stride": 10,
        "max_kl": 0.02,
        "outer_schedule": "linear",
        "init_std": 0.38,
        "min_std": 0.38,
    },
    "finn2017": FINN,
}
SHOWN_TASKS = 4
SHOWN_STEPS = 3


def environment(config: common.Config) -> rl.Env:
    from metajax.rl.navigation import navigation

    return navigation(config["reward"])


def draw(settings: common.Settings, agent: meta_rl.Agent, state: metajax.MetaState) -> None:
    """Figure 4's trajectories."""
    config, evaluated, workdir = settings
    num_steps = min(SHOWN_STEPS, evaluated["num_eval_steps"])
    tasks, shown = jax.device_get(
        meta_rl.adapted_trajectories(config, agent, state, SHOWN_TASKS, num_steps)
    )
    # The oracle sees the goal behind the position.
    paths = np.where(shown.mask[..., None] > 0, shown.observations[..., :2], np.nan)
    plots.paths(workdir / "trajectories.png", tasks["goal"], paths[:, :, 0])


def main() -> None:
    meta_rl.main("navigation", PRESETS, "two_steps", environment, draw)


if __name__ == "__main__":
    common.run(main)
