"""One meta-update against every peer on the same weights and data, in turns in one process.

Command: python -m benchmarks.meta_gradient [--cases NAME ...] [--devices=N] [--rounds=N] [--slow]

Needs `pip install "metajax[bench]"`. Every peer's meta-gradient is compared with ours before it is
timed, so that all race for the same number. Cases that are not named keep their rows of the record,
as do other devices.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import jax
import numpy as np

import metajax
from benchmarks import problems, timing, torch_peers
from metajax import nn

ENGINES = {
    2: {"metajax": metajax.second_order, "metajax, mixed_mode": metajax.mixed_mode},
    1: {"metajax": metajax.first_order},
}


def plain_jax(problem: problems.Problem, order: int) -> tuple[timing.Case, float]:
    """What one writes first: `vmap` over tasks of a network with native convolutions."""
    model = problem.model.clone(convolution=nn.native_conv)
    engine = ENGINES[order]["metajax"]()
    update, arguments = problems.update(
        problem, model.apply, meta_gradient=engine, task_chunk=problem.tasks
    )
    case, _, seconds = timing.compiled(update, *arguments)
    return case, seconds


def norm(gradient: Any) -> float:
    return float(np.sqrt(sum(float((g.detach() ** 2).sum()) for g in gradient)))


def measure(name: str, order: int, rounds: int, slow: bool) -> list[dict[str, Any]]:
    problem = problems.CASES[name]
    cases: dict[str, timing.Case] = {}
    details: dict[str, dict[str, Any]] = {}
    meshes: dict[str, Any] = {"": None}
    if jax.device_count() > 1:
        meshes[f", {jax.device_count()} devices"] = metajax.task_mesh()
    for (name_of, engine), (devices, mesh) in itertools.product(
        ENGINES[order].items(), meshes.items()
    ):
        label = name_of + devices
        update, arguments = problems.update(problem, meta_gradient=engine(), mesh=mesh)
        cases[label], program, seconds = timing.compiled(update, *arguments)
        _, metrics = cases[label]()
        expected = float(metrics["meta_gradient_norm"])
        details[label] = {
            "compile_seconds": seconds,
            "temporary_bytes": timing.temporary_bytes(program),
        }
    for label, make in torch_peers.peers(order).items():
        try:
            case = make(problem)
            found = norm(case())
        except Exception as error:  # of PyTorch's compiler or a library, whatever it is
            details[label] = {"failed": type(error).__name__}  # its message names paths
            continue
        assert abs(found - expected) < 0.02 * expected, (label, found, expected)
        cases[label] = case
    multiply, flops = timing.matmul_case()
    times = timing.race({**cases, "matmul": multiply}, rounds)
    if slow:
        plain, seconds = plain_jax(problem, order)
        details["jax, plain vmap"] = {"compile_seconds": seconds, "rounds": 1}
        times |= timing.race({"jax, plain vmap": plain}, rounds=1)
    peak = flops / times.pop("matmul")["median"]
    useful = problems.useful_flops(problem, order)
    fastest = min(
        (times[label]["median"], label) for label in times if not label.startswith("metajax")
    )
    return [
        {
            "case": name,
            "order": order,
            "library": label,
            **times.get(label, {}),
            **details.get(label, {}),
            **(
                {
                    "useful_gflop": useful / 1e9,
                    "matmul_gflop_per_second": peak / 1e9,
                    "share_of_matmul_rate": useful / times[label]["median"] / peak,
                    "fastest_peer": fastest[1],
                    "speedup": fastest[0] / times[label]["median"],
                }
                if label in times
                else {}
            ),
        }
        for label in {**times, **details}
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=problems.CASES, default=[*problems.CASES])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--devices", type=int, default=0, help="CPU devices; 0: those there are")
    parser.add_argument(
        "--slow",
        action="store_true",
        help="also jax with plain vmap, a minute a step on a CPU, timed once",
    )
    arguments = parser.parse_args()
    if arguments.devices:
        jax.config.update("jax_num_cpu_devices", arguments.devices)
    rows = [
        row
        for name in arguments.cases
        for order in (2, 1)
        for row in measure(name, order, arguments.rounds, arguments.slow)
    ]
    timing.write(
        "meta_gradient",
        rows,
        key=lambda row: (row["case"], row["order"], row["device"]["kind"]),
        rounds=arguments.rounds,
        peers=timing.peer_versions(),
    )


if __name__ == "__main__":
    main()
