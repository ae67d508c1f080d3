"""Half-cheetah and ant by meta-reinforcement learning: Finn 2017, section 5.3, figure 5.

Command:   python -m experiments.locomotion --task=cheetah_dir
Hardware:  2 CPU cores for --preset=reduced, an accelerator for the paper's size
The paper: after 1 gradient step (return - random) / (oracle - random) of .69 (cheetah_dir),
           .88 (cheetah_vel), .95 (ant_dir), .94 (ant_vel)
"""

from __future__ import annotations

import jax
import numpy as np
from absl import flags

import metajax
from experiments import common, meta_rl
from metajax import rl

flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(meta_rl)

# The tables of metajax.rl.locomotion, which takes seconds to import.
TASKS = ("cheetah_vel", "cheetah_dir", "ant_vel", "ant_dir", "ant_goal")
flags.DEFINE_enum("task", None, TASKS, "Body and goal" + common.BY_PRESET)
flags.DEFINE_enum(
    "simulator", None, ["rllab", "brax"], "Time step and costs, of" + common.BY_PRESET
)
flags.DEFINE_enum(
    "backend",
    None,
    ["spring", "positional", "generalized", "mjx"],
    "Brax's physics" + common.BY_PRESET,
)
flags.DEFINE_bool(
    "standardize",
    None,
    "Whether observations have mean 0 and variance 1 under random actions" + common.BY_PRESET,
)
flags.DEFINE_integer("horizon", None, "Steps of a trajectory" + common.BY_PRESET, lower_bound=1)

FINN: common.Config = {
    **meta_rl.DEFAULTS,
    "task": "cheetah_dir",
    "simulator": "rllab",
    "backend": "spring",
    "horizon": 200,
    "standardize": False,
    "meta_batch_size": 40,
    "num_eval_steps": 3,
    "eval_trajectories": 20,
    "steps_per_call": 5,
    "validate_every": 10,
    "checkpoint_every": 10,
}
PRESETS: common.Presets = {
    "finn2017": FINN,
    "reduced": {
        **FINN,
        "algorithm": "fomaml",
        "meta_batch_size": 8,
        "num_meta_steps": 400,
        "validation_tasks": 8,
        "validate_every": 25,
        "checkpoint_every": 25,
        "standardize": True,
        "curvature_stride": 10,
        "max_kl": 0.03,
        "init_std": 0.6,
    },
}


def environment(config: common.Config) -> rl.Env:
    from metajax.rl.locomotion import locomotion

    env = locomotion(config["task"], mode=config["simulator"], backend=config["backend"])
    env = env._replace(horizon=config["horizon"])
    # Not of the seed: runs over several see the same environment.
    return rl.standardized(env, jax.random.key(0)) if config["standardize"] else env


def film(settings: common.Settings, agent: meta_rl.Agent, state: metajax.MetaState) -> None:
    """Writes `before_after.gif`: the body before and after a gradient step on two tasks."""
    from experiments import animation
    from metajax.rl.brax_env import brax_state
    from metajax.rl.locomotion import physics

    config, evaluated, workdir = settings
    num_steps = min(1, evaluated["num_eval_steps"])
    adaptation = meta_rl.adaptation_of(
        config, agent.env, agent.apply, num_steps, config["trajectories"]
    )

    def run(params, task, rng):
        def body(step, rng):
            action = agent.apply(params, step.observation).sample(rng)
            after = agent.env.step(step, action)
            place = brax_state(after).pipeline_state.x
            return after, (place.pos, place.rot)

        start = agent.env.reset(rng, task)
        return jax.lax.scan(body, start, jax.random.split(rng, agent.env.horizon))[1]

    def before_and_after(task, rng):
        adapted, _ = adaptation.collect.apply(state.meta_params, task, rng)
        before = run(state.meta_params.params, task, rng)
        return before, run(adapted, task, rng)

    tasks = extremes(agent.env.sample_tasks(jax.random.key(config["seed"] + 4), 40))
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
    brax = physics(config["task"], mode=config["simulator"], backend=config["backend"])
    animation.gif(workdir / "before_after.gif", brax.sys.mj_model, runs, float(brax.dt))


def extremes(tasks: dict) -> dict:
    """The least and the greatest of some tasks, by their first number."""
    (values,) = tasks.values()
    order = np.argsort(np.asarray(values).reshape(len(values), -1)[:, 0])
    return jax.tree.map(lambda x: x[np.array([order[0], order[-1]])], tasks)


def main() -> None:
    meta_rl.main("locomotion", PRESETS, "finn2017", environment, film)


if __name__ == "__main__":
    common.run(main)
