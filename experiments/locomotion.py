"""Half-cheetah and ant by meta-reinforcement learning: Finn 2017, section 5.3, figure 5.

Command:   python -m experiments.locomotion --task=cheetah_dir
Hardware:  2 CPU cores for --preset=reduced, an accelerator for the paper's size
The paper: after 1 gradient step (return - random) / (oracle - random) of .69 (cheetah_dir),
           .88 (cheetah_vel), .95 (ant_dir), .94 (ant_vel)
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

import metajax
from experiments import agents, meta_rl
from experiments.command import Command, run
from experiments.meta_rl import MetaRL
from experiments.settings import setting
from metajax import rl
from metajax.rl import robots


@dataclasses.dataclass(frozen=True)
class Locomotion(MetaRL):
    """Locomotion."""

    task: str = setting(
        "cheetah_dir",
        "Body and goal; walker_vel is a task of Playground.",
        choices=(*robots.KINDS, "walker_vel"),
    )
    simulator: str = setting(
        "rllab",
        "Time step and costs in Brax, or MuJoCo Playground, which is an extra of its own.",
        choices=(*robots.MODES, "playground"),
    )
    backend: str = setting("spring", "Brax's physics.", choices=robots.BACKENDS)
    standardize: bool = setting(
        False, "Whether observations have mean 0 and variance 1 under random actions."
    )
    horizon: int = setting(200, "Steps of a trajectory.", least=1)

    def unused(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        if self.simulator == "playground":
            yield "Playground has its own physics", ("backend",)
        yield from super().unused()


FINN = dataclasses.replace(
    Locomotion(**meta_rl.FINN),
    meta_batch_size=40,
    num_eval_steps=3,
    eval_trajectories=20,
    steps_per_call=5,
    checkpoint_every=10,
)
PRESETS = {
    "finn2017": FINN,
    "reduced": dataclasses.replace(
        FINN,
        algorithm="fomaml",
        meta_batch_size=8,
        num_meta_steps=400,
        validation_tasks=8,
        validate_every=25,
        checkpoint_every=25,
        standardize=True,
        curvature_stride=10,
        max_kl=0.03,
        init_std=0.6,
    ),
}


@contextlib.contextmanager
def without_notices() -> Iterator[None]:
    """Hides the notices of Brax and MuJoCo about their versions and models."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import mujoco
        except ImportError:  # metajax.rl.locomotion says what to install
            yield
            return
        before = mujoco.get_mju_user_warning()
        mujoco.set_mju_user_warning(lambda message: None)
        try:
            yield
        finally:
            mujoco.set_mju_user_warning(before)


def make_env(settings: Locomotion) -> rl.Env:
    with without_notices():
        if settings.simulator == "playground":
            from metajax.rl.playground import playground

            env = playground(settings.task)
        else:
            from metajax.rl.locomotion import locomotion

            backend = settings.backend
            env = locomotion(settings.task, mode=settings.simulator, backend=backend)
    env = env._replace(horizon=settings.horizon)
    # Independent of the seed, so that runs with several seeds have the same environment.
    return rl.standardized(env, jax.random.key(0)) if settings.standardize else env


def film(command: Command, agent: agents.Agent, state: metajax.MetaState, folder: Path) -> None:
    """Writes `before_after.gif`: the body before and after a gradient step on two tasks."""
    if command.settings.simulator == "playground":
        return  # Playground renders its bodies itself
    from experiments import animation
    from metajax.rl.brax_env import brax_state
    from metajax.rl.locomotion import physics

    settings = command.settings
    num_steps = min(1, settings.num_eval_steps)
    inner = agents.rebuilt(settings, agent, num_steps, settings.trajectories)

    def run(params, task, rng):
        place = brax_state(agents.played(agent, params, task, rng)).pipeline_state.x
        return place.pos, place.rot

    def before_and_after(task, rng):
        adapted, _ = inner.collect.apply(state.meta_params, task, rng)
        before = run(state.meta_params.params, task, rng)
        return before, run(adapted, task, rng)

    tasks = extremes(agent.env.sample_tasks(jax.random.key(settings.seed + 4), 40))
    shown = jax.device_get(
        jax.jit(jax.vmap(before_and_after))(tasks, jax.random.split(jax.random.key(0), 2))
    )
    runs = {}
    for i in range(2):
        goal = ", ".join(
            f"{name} {np.round(np.asarray(value[i]), 1)}" for name, value in tasks.items()
        )
        for name, run_ in zip(("before", "after 1 step"), shown, strict=True):
            runs[f"{goal}: {name}"] = jax.tree.map(lambda x, i=i: x[i], run_)
    with without_notices():
        brax = physics(settings.task, mode=settings.simulator, backend=settings.backend)
    animation.gif(folder / "before_after.gif", brax.sys.mj_model, runs, float(brax.dt))


def extremes(tasks: dict) -> dict:
    """The tasks with the smallest and the largest first number."""
    (values,) = tasks.values()
    order = np.argsort(np.asarray(values).reshape(len(values), -1)[:, 0])
    return jax.tree.map(lambda x: x[np.array([order[0], order[-1]])], tasks)


EXPERIMENT = meta_rl.experiment(
    "locomotion",
    "Half-cheetah and ant by meta-reinforcement learning: Finn 2017, figure 5.",
    PRESETS,
    make_env,
    film,
)

if __name__ == "__main__":
    run(EXPERIMENT)
