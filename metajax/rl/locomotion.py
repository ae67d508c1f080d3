"""Locomotion of a half-cheetah and an ant in Brax, the tasks of the MAML paper."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from metajax.rl.base import Env
from metajax.rl.brax_env import from_brax
from metajax.rl.robots import ANT, BACKENDS, CHEETAH, HEALTHY_HEIGHT, HORIZON, KINDS, MODES

try:
    import brax.envs
    from brax import math
except ImportError as error:
    raise ImportError(f'locomotion needs Brax ({error}): pip install "metajax[rl]"') from error


def physics(task: str, *, mode: str = "rllab", backend: str = "spring") -> Any:
    """The Brax environment of a task, for example to render its states.

    In mode `rllab` an action lasts as long as in rllab, 0.01 s for the cheetah and 0.02 s for the
    ant. Where this is not a multiple of Brax's physics step, the physics step is adjusted slightly.

    Args:
      task: a key of `KINDS`.
      mode: `"rllab"` or `"brax"`.
      backend: `"spring"`, `"positional"`, `"generalized"` or `"mjx"`.

    Raises:
      ValueError: for an unknown task, mode or backend.
    """
    for name, value, known in (
        ("task", task, tuple(KINDS)),
        ("mode", mode, MODES),
        ("backend", backend, BACKENDS),
    ):
        if value not in known:
            raise ValueError(f"locomotion: {name} must be one of {known}, got {value!r}.")
    body = KINDS[task].body
    environment = brax.envs.get_environment(body.environment, backend=backend)
    if mode == "rllab":
        frames = max(1, round(body.time_step / float(environment.sys.opt.timestep)))
        environment = brax.envs.get_environment(body.environment, backend=backend, n_frames=frames)
        environment.sys = environment.sys.tree_replace({"opt.timestep": body.time_step / frames})
    return environment


def locomotion(task: str, *, mode: str = "rllab", backend: str = "spring") -> Env:
    r"""A half-cheetah or an ant that has to reach a velocity, a direction or a position.

    ===============  ========================  ===================
    task             reward before costs       tasks
    ===============  ========================  ===================
    `cheetah_vel`    :math:`-|v_x - g|`        g ~ U(0, 2)
    `cheetah_dir`    :math:`\pm v_x`           forward or backward
    `ant_vel`        :math:`1 - |v_x - g|`     g ~ U(0, 3)
    `ant_dir`        :math:`\pm v_x`           forward or backward
    `ant_goal`       :math:`4 - |x - g|_1`     g ~ U[-3, 3]^2
    ===============  ========================  ===================

    The control cost is 0.05 (cheetah) or 0.005 (ant) times the squared action. The ant receives
    0.05 per step, and its trajectories end when the torso's height leaves [0.2, 1] m. In mode
    `brax` an action lasts 0.05 s, the control costs are 0.1 and 0.5, and the ant receives 1 per
    step. Velocities are mean velocities of the torso over one step, in m/s. A trajectory has 200
    steps.

    In mode `rllab` the observations follow rllab: the positions and velocities of the joints, the
    position of the torso and, for the ant, its rotation matrix; 20 numbers for the cheetah and 41
    for the ant. They differ from rllab's in that the joint coordinates are Brax's, the torso's
    position is that of its frame instead of its center of mass, and the ant's 84 contact forces are
    missing, as is their cost of at most 0.042 per step. In mode `brax` the observations are Brax's.

    Args:
      task: a key of `KINDS`.
      mode: `"rllab"` or `"brax"`.
      backend: `"spring"`, `"positional"`, `"generalized"` or `"mjx"`, the physics of Brax.

    Raises:
      ValueError: for an unknown task, mode or backend.

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      section 5.3 and the authors' environments.
    """
    environment = physics(task, mode=mode, backend=backend)
    body, gain, sample_tasks = KINDS[task]
    time_step = float(environment.dt)

    def reward(before, action, after, task):
        x, x_before = after.pipeline_state.x.pos[0], before.pipeline_state.x.pos[0]
        costs = body.control_cost[mode] * jnp.sum(action**2)
        value = gain(x, (x - x_before) / time_step, task) - costs + body.alive_bonus[mode]
        low, high = HEALTHY_HEIGHT
        fallen = (x[2] < low) | (x[2] > high) if body.falls else jnp.asarray(False)
        return value, fallen

    def observe(state):
        pipeline = state.pipeline_state
        parts = [pipeline.q[1:] if body is CHEETAH else pipeline.q, pipeline.qd]
        if body is ANT:
            parts.append(math.quat_to_3x3(pipeline.x.rot[0]).reshape(-1))
        return jnp.concatenate([*parts, pipeline.x.pos[0]])

    return from_brax(
        environment,
        sample_tasks,
        reward=reward,
        observe=observe if mode == "rllab" else None,
        horizon=HORIZON,
    )
