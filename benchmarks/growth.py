"""How the cost of a meta-update grows with tasks, ways, shots, inner steps and width.

Command: python -m benchmarks.growth [--rounds=N]

Each row varies one size of the Omniglot meta-update (8 tasks, 5-way 1-shot, 5 queries, 1 step, 64
channels, second order): seconds, temporary bytes, compile seconds. The rows of `chunk` vary the
tasks per `vmap`, for this network and for the sinusoid's. The default of
`metajax.parallel.default_chunk` follows from them.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import optax

import metajax
from benchmarks import problems, timing
from metajax import nn
from metajax.tasks import Sinusoid, meta_batch

SIZES: dict[str, tuple[int, ...]] = {
    "tasks": (1, 4, 16, 64),
    "ways": (5, 10, 20),
    "shots": (1, 5, 10),
    "num_steps": (1, 2, 5, 10),
    "features": (16, 32, 64, 128),
}
CHUNKS = (1, 2, 4, 8, 16, 32)


def make_problem(name: str, value: int) -> problems.Problem:
    problem = problems.omniglot(tasks=8, queries=5)
    if name == "features":
        return problem._replace(features=value, model=nn.ConvNet(5, features=value))
    return problems.omniglot(**{"tasks": 8, "queries": 5, name: value})


def sinusoid(**options: Any) -> tuple[Any, tuple[Any, ...]]:
    model, tasks, key = nn.sinusoid_mlp(), Sinusoid(shots=10, queries=10), jax.random.key(0)
    learner = metajax.maml(
        metajax.squared_error(model.apply), optax.sgd(0.01), optax.adam(1e-3), **options
    )
    state = learner.init(model.init(key, tasks.sample(key).support[0]))
    return learner.update, (state, meta_batch(tasks, 32, key), key)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    built = {
        (name, value): problems.update(make_problem(name, value))
        for name, values in SIZES.items()
        for value in values
    }
    for chunk in CHUNKS:
        problem = problems.omniglot(queries=1)
        built["chunk, omniglot", chunk] = problems.update(problem, task_chunk=chunk)
        mlp = problem._replace(model=nn.omniglot_mlp(5))
        built["chunk, omniglot mlp", chunk] = problems.update(mlp, task_chunk=chunk)
        built["chunk, sinusoid", chunk] = sinusoid(task_chunk=chunk)
    rows = []
    groups = {name for name, _ in built}
    for group in sorted(groups):
        cases, details = {}, {}
        for (name, value), (update, arguments) in built.items():
            if name == group:
                case, program, seconds = timing.compiled(update, *arguments)
                cases[str(value)] = case
                details[str(value)] = {
                    "temporary_bytes": timing.temporary_bytes(program),
                    "compile_seconds": seconds,
                }
        times = timing.race(cases, rounds)
        rows += [
            {"varied": group, "value": int(value), **times[value], **details[value]}
            for value in cases
        ]
    timing.write("growth", rows, rounds=rounds)


if __name__ == "__main__":
    main()
