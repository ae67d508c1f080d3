"""The table of locomotion tasks: a new one is a line here. It imports no physics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.base import Array, Key
from metajax.rl.base import Task

BACKENDS = ("spring", "positional", "generalized", "mjx")
MODES = ("rllab", "brax")
HORIZON = 200
HEALTHY_HEIGHT = (0.2, 1.0)  # meters


class Body(NamedTuple):
    """The settings of one robot.

    Attributes:
      environment: the name of the Brax environment.
      time_step: duration of an action in rllab, in seconds.
      control_cost: factor on the squared action, for each mode.
      alive_bonus: reward per step, for each mode.
      falls: whether a trajectory ends when the torso's height leaves `HEALTHY_HEIGHT`.
    """

    environment: str
    time_step: float
    control_cost: dict[str, float]
    alive_bonus: dict[str, float]
    falls: bool


CHEETAH = Body(
    "halfcheetah", 0.01, {"rllab": 0.05, "brax": 0.1}, {"rllab": 0.0, "brax": 0.0}, False
)
ANT = Body("ant", 0.02, {"rllab": 0.005, "brax": 0.5}, {"rllab": 0.05, "brax": 1.0}, True)

Gain = Callable[[Any, Array, Task], Array]
"""`(torso position, torso velocity, task) -> reward before costs`."""


class Kind(NamedTuple):
    """A distribution of tasks for one robot.

    Attributes:
      body: the robot.
      gain: the reward before costs.
      sample_tasks: `(rng, n) -> tasks`.
    """

    body: Body
    gain: Gain
    sample_tasks: Callable[[Key, int], Task]


def _uniform(name: str, low: float, high: float, *shape: int):
    def sample_tasks(rng: Key, n: int) -> dict[str, Array]:
        return {name: jax.random.uniform(rng, (n, *shape), minval=low, maxval=high)}

    return sample_tasks


def _direction(rng: Key, n: int) -> dict[str, Array]:
    return {"direction": jax.random.rademacher(rng, (n,), jnp.float32)}


def _run(position: Array, velocity: Array, task: Task) -> Array:
    return task["direction"] * velocity[0]


KINDS: dict[str, Kind] = {
    "cheetah_vel": Kind(
        CHEETAH,
        lambda position, velocity, task: -jnp.abs(velocity[0] - task["velocity"]),
        _uniform("velocity", 0.0, 2.0),
    ),
    "cheetah_dir": Kind(CHEETAH, _run, _direction),
    "ant_vel": Kind(
        ANT,
        lambda position, velocity, task: 1.0 - jnp.abs(velocity[0] - task["velocity"]),
        _uniform("velocity", 0.0, 3.0),
    ),
    "ant_dir": Kind(ANT, _run, _direction),
    "ant_goal": Kind(
        ANT,
        lambda position, velocity, task: 4.0 - jnp.sum(jnp.abs(position[:2] - task["goal"])),
        _uniform("goal", -3.0, 3.0, 2),
    ),
}
