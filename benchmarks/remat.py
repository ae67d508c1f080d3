"""Inner steps recomputed or stored: time and memory against what the gradient of the loss keeps.

Command: python -m benchmarks.remat [--cases NAME ...] [--rounds=N]

`second_order()` chooses by the number of steps and by a ratio: the bytes that the gradient of the
loss keeps of its forward pass, over the bytes of the parameters. A row has the exact meta-gradient
of one problem at one number of inner steps; the ratios are of recomputing to storing.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import optax

import metajax
from benchmarks import problems, timing
from metajax import nn, remat

STEPS = (2, 5, 20)
Case = tuple[Any, Any, metajax.Episode]  # a loss, its network, a meta-batch


def classification(problem: problems.Problem) -> Case:
    model = problem.model
    return metajax.cross_entropy(model.apply), model, problems.episodes(problem)


def sine_waves(points: int, tasks: int = 25) -> Case:
    model = nn.sinusoid_mlp()
    task = metajax.tasks.Sinusoid(shots=points, queries=10)
    episodes = jax.vmap(task.sample)(jax.random.split(jax.random.key(0), tasks))
    return metajax.squared_error(model.apply), model, episodes


PERCEPTRON = problems.omniglot(tasks=8)._replace(model=nn.omniglot_mlp(5))
POINTS = (5, 20, 40, 80, 320)
PROBLEMS = {
    "perceptron, 5 drawings": PERCEPTRON,
    "perceptron, 100 drawings": PERCEPTRON._replace(shots=20),
    "Omniglot, 5 drawings": problems.omniglot(tasks=8),
    "Omniglot, 25 drawings": problems.omniglot(tasks=8, shots=5),
    "Mini-ImageNet, 5 images": problems.mini_imagenet(tasks=2),
    "Mini-ImageNet, 25 images": problems.mini_imagenet(tasks=2, shots=5),
    "transformer, 5 sequences": problems.transformer(tasks=1),
}
CASES: dict[str, Callable[[], Case]] = {
    **{f"sine waves, {n} points": functools.partial(sine_waves, n) for n in POINTS},
    **{name: functools.partial(classification, problem) for name, problem in PROBLEMS.items()},
}


def measure(name: str, case: Case, num_steps: int, rounds: int) -> dict[str, Any]:
    loss, model, episodes = case
    support = jax.tree.map(lambda x: x[0], episodes.support)
    params = model.init(jax.random.key(0), support[0])
    key = jax.random.key(1)
    calls, programs = {}, {}
    for label, recomputed in (("stored", False), ("recomputed", True)):
        learner = metajax.maml(
            loss,
            optax.sgd(0.01),
            optax.sgd(1.0),
            num_steps=num_steps,
            meta_gradient=metajax.second_order(remat=recomputed),
        )
        calls[label], programs[label], _ = timing.compiled(
            learner.update, learner.init(params), episodes, key
        )
    times = timing.race(calls, rounds)
    kept = remat.kept_bytes(loss, params, (support, key))
    return {
        "case": name,
        "num_steps": num_steps,
        "kept_of_parameters": kept / sum(p.nbytes for p in jax.tree.leaves(params)),
        "kept_bytes": kept,
        "stored_seconds": times["stored"]["median"],
        "time_ratio": times["recomputed"]["median"] / times["stored"]["median"],
        "stored_bytes": timing.temporary_bytes(programs["stored"]),
        "memory_ratio": timing.temporary_bytes(programs["recomputed"])
        / timing.temporary_bytes(programs["stored"]),
        "recomputed_by_default": remat.recomputing_pays(
            num_steps, loss, params, (support, key), params
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for name, num_steps in itertools.product(arguments.cases, STEPS):
        timing.write(
            "remat",
            [measure(name, CASES[name](), num_steps, arguments.rounds)],
            key=lambda row: (row["case"], row["num_steps"]),
            rounds=arguments.rounds,
        )


if __name__ == "__main__":
    main()
