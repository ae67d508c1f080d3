"""Cheetah and walker of MuJoCo Playground with tasks: the maintained relatives of Brax's robots."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from metajax.base import Array
from metajax.rl.base import Env, Task
from metajax.rl.brax_env import from_brax
from metajax.rl.robots import HORIZON, KINDS

try:
    from mujoco_playground import registry
    from mujoco_playground._src import mjx_env
except ImportError as error:
    raise ImportError(
        f'MuJoCo Playground is missing ({error}): pip install "metajax[playground]"'
    ) from error

# task -> Playground's environment, and the kind of task in the table of robots.
TASKS = {
    "cheetah_vel": ("CheetahRun", "cheetah_vel"),
    "cheetah_dir": ("CheetahRun", "cheetah_dir"),
    "walker_vel": ("WalkerRun", "cheetah_vel"),
}
CONTROL_COST = 0.05  # of rllab's cheetah


def playground(task: str, *, horizon: int = HORIZON, implementation: str = "jax") -> Env:
    r"""A robot of Playground that has to reach a velocity or a direction.

    ===============  ====================  ==================
    task             reward before costs   tasks
    ===============  ====================  ==================
    `cheetah_vel`    :math:`-|v_x - g|`    g ~ U(0, 2)
    `cheetah_dir`    :math:`\pm v_x`       forward or backward
    `walker_vel`     :math:`-|v_x - g|`    g ~ U(0, 2)
    ===============  ====================  ==================

    :math:`v_x` is the velocity of the body in meters per second, from which
    :math:`0.05 \|a\|^2` is subtracted. Observations, time steps and physics are Playground's. A
    trajectory ends early only if the physics break. A reset lets the body settle for 200 steps of
    the physics.

    `rl.from_brax` takes Playground's other environments with rewards of your own in the same way.

    Args:
      task: a key of `TASKS`.
      horizon: steps of a trajectory.
      implementation: of the physics, `"jax"`, or `"warp"`, which is faster on an NVIDIA GPU.

    Raises:
      ValueError: for an unknown task.

    Example:

    >>> from metajax.rl.playground import playground
    >>> env = playground("cheetah_dir")  # doctest: +SKIP
    >>> env.observation_size, env.action_size  # doctest: +SKIP
    (17, 6)

    References:
      Zakka et al., `MuJoCo Playground <https://arxiv.org/abs/2502.08844>`_, 2025; Finn et al.,
      `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017, section 5.3, for
      the tasks of the cheetah.
    """
    if task not in TASKS:
        raise ValueError(f"playground: task must be one of {tuple(TASKS)}, got {task!r}.")
    name, kind = TASKS[task][0], KINDS[TASKS[task][1]]
    environment: Any = registry.load(name, config_overrides={"impl": implementation})

    def reward(before: Any, action: Array, after: Any, task: Task) -> tuple[Array, Array]:
        velocity = mjx_env.get_sensor_data(environment.mj_model, after.data, "torso_subtreelinvel")
        gain = kind.gain(after.data.qpos, velocity, task)
        return gain - CONTROL_COST * jnp.sum(action**2), after.done

    return from_brax(environment, kind.sample_tasks, reward=reward, horizon=horizon)
