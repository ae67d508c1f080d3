"""How the cost of a meta-update grows with tasks, ways, shots, inner steps and width.

Command: python -m benchmarks.growth [--varied NAME ...] [--devices=N] [--rounds=N] [--no-peers]

Each row varies one size of the Omniglot meta-update (8 tasks, 5-way 1-shot, 5 queries, 1 step, 64
channels, second order): seconds, temporary bytes, compile seconds, for this library on one device
and on all, for a PyTorch loop and for `torch.func`, which keeps all tasks in memory. The rows of
`chunk` vary the tasks per `vmap`, for this network and for the sinusoid's. The default of
`metajax.parallel.default_chunk` follows from them. With `processes` every process has a core and as
many tasks as the one alone. A size is written as soon as it is measured.
"""

from __future__ import annotations

import argparse
import functools
from typing import Any

import jax
import optax

import metajax
from benchmarks import problems, processes, timing
from metajax import nn
from metajax.tasks import Sinusoid, meta_batch

SIZES: dict[str, tuple[int, ...]] = {
    "tasks": (8, 32, 128, 512),
    "ways": (5, 10, 20, 50),
    "shots": (1, 5, 10),
    "num_steps": (1, 3, 10, 30, 100),
    "features": (16, 32, 64, 128, 256),
}
PROCESSES = "processes"
CHUNKS = (1, 2, 4, 8, 16, 32)
OURS = "metajax"
MOST_TASKS_OF_FUNC = 128


def make_problem(name: str, value: int) -> problems.Problem:
    # A step size with which the losses of a hundred steps stay finite.
    sizes: dict[str, Any] = {"tasks": 8, "queries": 5, "learning_rate": 0.01, name: value}
    if name == "features":
        return problems.omniglot(**sizes)._replace(model=nn.ConvNet(5, features=value))
    return problems.omniglot(**sizes)


def sinusoid(**options: Any) -> tuple[Any, tuple[Any, ...]]:
    model, tasks, key = nn.sinusoid_mlp(), Sinusoid(shots=10, queries=10), jax.random.key(0)
    learner = metajax.maml(
        metajax.squared_error(model.apply), optax.sgd(0.01), optax.adam(1e-3), **options
    )
    state = learner.init(model.init(key, tasks.sample(key).support[0]))
    return learner.update, (state, meta_batch(tasks, 32, key), key)


def omniglot(model: Any = None, **options: Any) -> tuple[Any, tuple[Any, ...]]:
    problem = problems.omniglot(queries=1)
    return problems.update(problem._replace(model=model or problem.model), **options)


CHUNKED: dict[str, Any] = {
    "chunk, omniglot": omniglot,
    "chunk, omniglot mlp": functools.partial(omniglot, nn.omniglot_mlp(5)),
    "chunk, sinusoid": sinusoid,
}


def measure(group: str, rounds: int, peers: bool) -> list[dict[str, Any]]:
    """The rows of a size: this library, on all devices too, and two peers."""
    if group == PROCESSES:
        return [
            {"varied": group, "value": row["processes"], "library": OURS, "median": row["seconds"]}
            for row in processes.weak_scaling(rounds)
        ]
    cases: dict[tuple[str, int], timing.Case] = {}
    details: dict[tuple[str, int], dict[str, Any]] = {}

    def enter(library: str, value: int, update: Any, arguments: Any) -> None:
        case, program, seconds = timing.compiled(update, *arguments)
        cases[library, value] = case
        details[library, value] = {
            "temporary_bytes": timing.temporary_bytes(program),
            "compile_seconds": seconds,
        }

    devices = jax.device_count()
    for value in CHUNKS if group in CHUNKED else SIZES[group]:
        if group in CHUNKED:
            enter(OURS, value, *CHUNKED[group](task_chunk=value))
            continue
        problem = make_problem(group, value)
        enter(OURS, value, *problems.update(problem))
        if devices > 1 and problem.tasks % devices == 0:
            mesh = metajax.task_mesh()
            enter(f"{OURS}, {devices} devices", value, *problems.update(problem, mesh=mesh))
        if not peers:
            continue
        from benchmarks import torch_peers

        cases["PyTorch loop", value] = torch_peers.loop(problem, 2)
        if problem.tasks <= MOST_TASKS_OF_FUNC:
            cases["torch.func", value] = torch_peers.func(problem, 2)
    names = {f"{library} {value}": (library, value) for library, value in cases}
    times = timing.race({name: cases[key] for name, key in names.items()}, rounds)
    return [
        {
            "varied": group,
            "value": value,
            "library": library,
            **times[name],
            **details.get((library, value), {}),
        }
        for name, (library, value) in names.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    groups = [*SIZES, PROCESSES, *CHUNKED]
    parser.add_argument("--varied", nargs="+", choices=groups, default=groups)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--devices", type=int, default=0, help="CPU devices; 0: those there are")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    if arguments.devices:
        jax.config.update("jax_num_cpu_devices", arguments.devices)
    for group in arguments.varied:
        timing.write(
            "growth",
            measure(group, arguments.rounds, arguments.peers),
            key=lambda row: row["varied"],
            rounds=arguments.rounds,
            peers=timing.peer_versions("torch"),
        )


if __name__ == "__main__":
    main()
