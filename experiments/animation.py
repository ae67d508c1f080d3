"""A running body as a GIF: the capsules of its geometry, seen from the side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import mujoco
import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter

ROUND = {int(mujoco.mjtGeom.mjGEOM_CAPSULE), int(mujoco.mjtGeom.mjGEOM_SPHERE)}


def rotated(quaternions: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Rotates `vector` by unit quaternions `[..., 4]`, real part first."""
    w, u = quaternions[..., :1], quaternions[..., 1:]
    crossed = np.cross(u, np.broadcast_to(vector, u.shape))
    return vector + 2 * (w * crossed + np.cross(u, crossed))


def capsules(model: Any, positions: np.ndarray, rotations: np.ndarray) -> list[tuple]:
    """Ends and radius of the body's capsules and spheres in the world.

    Args:
      model: the MuJoCo model.
      positions: positions of the links, `[time, links, 3]`.
      rotations: rotations of the links, `[time, links, 4]`.

    Returns:
      `(ends [time, 2, 3], radius)` of each capsule.
    """
    found = []
    for geom in range(model.ngeom):
        link = model.geom_bodyid[geom] - 1  # body 0 is the world
        if link < 0 or int(model.geom_type[geom]) not in ROUND:
            continue
        radius, half = model.geom_size[geom][:2]
        axis = rotated(model.geom_quat[geom], np.array([0.0, 0.0, half]))
        local = model.geom_pos[geom] + np.stack([-axis, axis])
        ends = [positions[:, link] + rotated(rotations[:, link], end) for end in local]
        found.append((np.stack(ends, axis=1), radius))
    return found


def gif(
    path: Path,
    model: Any,
    runs: Mapping[str, tuple[np.ndarray, np.ndarray]],
    seconds_per_step: float,
    *,
    stride: int = 4,
) -> None:
    """Draws runs one below the other.

    Args:
      path: the GIF to write.
      model: the MuJoCo model.
      runs: for each title the positions and rotations of the links, see `capsules`.
      seconds_per_step: the time between two positions.
      stride: draw every `stride`-th position.
    """
    figure, column = plt.subplots(
        len(runs), 1, figsize=(6, 1.5 * len(runs)), squeeze=False, sharex=True, layout="constrained"
    )
    shapes = [capsules(model, *run) for run in runs.values()]
    torso = np.concatenate([positions[:, 0] for positions, _ in runs.values()])
    low, high = torso[:, 0].min() - 1.0, torso[:, 0].max() + 1.0
    drawn = []
    for axes, title, body in zip(column[:, 0], runs, shapes, strict=True):
        axes.set(xlim=(low, high), ylim=(-0.2, 1.4), title=title, yticks=[])
        axes.title.set_fontsize(8)
        axes.set_aspect("equal")
        axes.axhline(0.0, color="gray", linewidth=1)
        axes.axvline(0.0, color="gray", linewidth=0.5, linestyle=":")
        width = 72 * 6 / (high - low)  # points per metre
        drawn.append(
            [
                axes.plot(
                    [], [], linewidth=2 * radius * width, solid_capstyle="round", color="peru"
                )[0]
                for _, radius in body
            ]
        )

    def update(frame: int) -> list:
        for lines, body in zip(drawn, shapes, strict=True):
            for line, (ends, _) in zip(lines, body, strict=True):
                line.set_data(ends[frame, :, 0], ends[frame, :, 2])
        return [line for lines in drawn for line in lines]

    frames = range(0, len(next(iter(runs.values()))[0]), stride)
    animation = FuncAnimation(figure, update, frames=frames, blit=False)
    rate = max(1, round(1 / (seconds_per_step * stride)))
    animation.save(path, writer=PillowWriter(fps=min(rate, 25)), dpi=70)
    plt.close(figure)
