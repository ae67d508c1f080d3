"""Where a meta-update of reinforcement learning spends its time, and what a PPO-style one takes.

Command: python -m benchmarks.rl_parts [--cases NAME ...] [--rounds=N]

The parts of the trust-region update take turns with the whole update: `collect` (rollouts, and the
gradient steps that adapt), `gradient` of the loss through adaptation, `linearize` (adaptation at
the present parameters, once, with a product), `product` (one of the curvature with a vector, beyond
the first), `attempt` (the loss at the parameters of one step of the line search). `promp` is the
whole update of `--algorithm=promp` on as many trajectories.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
from typing import Any

import jax

from benchmarks import timing
from benchmarks.throughput import CASES
from experiments import agents
from metajax import rl
from metajax.rl.objective import (
    collect_batch,
    gradient_over_tasks,
    kl_curvature,
    mean_over_tasks,
    take_every,
)
from metajax.rl.trpo import maml_trpo
from metajax.tasks import meta_batch

CG_STEPS: int = inspect.signature(maml_trpo).parameters["cg_steps"].default


def measure(name: str, rounds: int) -> list[dict[str, Any]]:
    """The rows of a case."""
    setup = CASES[name]
    settings = dataclasses.replace(setup.settings, algorithm="maml")
    env = setup.make_env(settings)
    agent = agents.make_agent(settings, env)
    loop, chunk = agent.learner.inner, settings.task_chunk or None
    state = agent.learner.init(agent.params)
    key = jax.random.key(settings.seed)
    episodes = meta_batch(rl.Tasks(env.sample_tasks), settings.meta_batch_size, key)
    loss = functools.partial(rl.loss_and_kl, loop, every_step=settings.every_step)

    def collect(state, key):
        return collect_batch(loop, state, episodes, key, chunk, None)

    batch, measured = jax.jit(collect)(state, key)
    old = state.meta_params

    def products(old, batch, count):
        curvature = kl_curvature(
            loop,
            old,
            take_every(batch, settings.curvature_stride),
            every_step=settings.every_step,
            task_chunk=chunk,
        )
        return jax.lax.fori_loop(0, count, lambda _, v: curvature(v), old)

    proximal = agents.make_agent(dataclasses.replace(settings, algorithm="promp"), env).learner
    functions: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "update": (agent.learner.update, (state, episodes, key)),
        "collect": (collect, (state, key)),
        "gradient": (
            gradient_over_tasks(functools.partial(loss, collecting=True), chunk, None),
            (old, batch),
        ),
        "linearize": (functools.partial(products, count=1), (old, batch)),
        "products": (functools.partial(products, count=1 + CG_STEPS), (old, batch)),
        "attempt": (mean_over_tasks(loss, chunk, None), (old, batch)),
        "promp": (proximal.update, (proximal.init(agent.params), episodes, key)),
    }
    cases = {label: timing.compiled(fn, *args)[0] for label, (fn, args) in functions.items()}
    attempts = int(cases["update"]()[1]["line_search_steps"])
    times = {label: each["median"] for label, each in timing.race(cases, rounds).items()}
    times["product"] = (times.pop("products") - times["linearize"]) / CG_STEPS
    calls = {"product": CG_STEPS - 1, "attempt": attempts}
    return [
        {
            "case": name,
            "part": label,
            "seconds": seconds,
            "calls": calls.get(label, 1),
            "share": calls.get(label, 1) * seconds / times["update"],
            "env_steps_per_second": float(measured["env_steps"]) / seconds,
            "num_steps": settings.num_steps,
            "tasks": settings.meta_batch_size,
        }
        for label, seconds in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for name in arguments.cases:
        timing.write(
            "rl_parts",
            measure(name, arguments.rounds),
            key=lambda row: (row["case"], row["device"]["kind"]),
            rounds=arguments.rounds,
        )


if __name__ == "__main__":
    main()
