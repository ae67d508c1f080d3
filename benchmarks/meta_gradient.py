"""One meta-update against every peer on the same weights and data, in turns in one process.

Command: python -m benchmarks.meta_gradient [--cases NAME ...] [--orders N ...] [--devices=N]
  [--rounds=N] [--slow] [--compile_only] [--patience=SECONDS]

Needs `pip install "metajax[bench]"`. Every meta-gradient is compared with that of our default
engine before it is timed, so that all race for the same numbers. A case is written as soon as it is
done; those that are not named keep their rows of the record, as do other devices. `--compile_only`
fills the compilers' caches and records nothing: several processes may do so at once. A library
whose first result takes more than `--patience` seconds of a processor is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import signal
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

import metajax
from benchmarks import problems, timing, torch_networks, torch_peers
from metajax import nn
from metajax.machine import largest_divisor

ENGINES = {
    2: {"metajax": metajax.second_order, "metajax, mixed_mode": metajax.mixed_mode},
    1: {"metajax": metajax.first_order},
}


CASES = problems.CASES | problems.SHAPES
PLAIN = "jax, plain vmap"
# Rounding alone makes a few percent after several steps, in float32 and more so in TF32.
TOLERANCE = 0.1


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Raises a `TimeoutError` after so many seconds of a processor's time.

    A compiler may turn it into an error of its own, which becomes a `TimeoutError` again.
    """
    over = False

    def stop(*_: Any) -> None:
        nonlocal over
        over = True
        raise TimeoutError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    except Exception as error:
        if over:
            raise TimeoutError from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def flat(arrays: Iterable[Any]) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(array, np.float64)) for array in arrays])


def measure(
    name: str, order: int, rounds: int, slow: bool, most_seconds: float
) -> list[dict[str, Any]]:
    """The rows of a case; without rounds, nothing is timed and there are none."""
    problem = CASES[name]
    cases: dict[str, timing.Case] = {}
    details: dict[str, dict[str, Any]] = {}
    initial = flat(torch_networks.arrays(problems.parameters(problem), problem).values())
    expected: np.ndarray | None = None

    def enter(label: str, case: timing.Case, gradient: np.ndarray, **detail: Any) -> None:
        """Only candidates that match the first gradient are timed."""
        nonlocal expected
        expected = gradient if expected is None else expected
        difference = float(np.linalg.norm(gradient - expected) / np.linalg.norm(expected))
        details[label] = {"gradient_difference": difference, **detail}
        # The same gradients are shown on a CPU. TF32 keeps ten bits, and rounding moves rectifiers
        # across zero, many of them in images of noise: with products rounded so on a CPU, the
        # gradient is .25 (first order) and .32 (second) from that of float64 by either convolution.
        if difference < TOLERANCE or jax.default_backend() != "cpu":
            cases[label] = case
        else:
            details[label]["failed"] = "another gradient"

    def enter_ours(label: str, model: Any, **options: Any) -> None:
        update, arguments = problems.update(problem, model.apply, **options)
        case, program, seconds = timing.compiled(update, *arguments)
        # The outer step is the meta-gradient itself.
        updated = torch_networks.arrays(case()[0].meta_params.params, problem)
        detail: dict[str, Any] = {"temporary_bytes": timing.temporary_bytes(program)}
        if not jax.config.values["jax_compilation_cache_dir"]:
            detail["compile_seconds"] = seconds
        enter(label, case, initial - flat(updated.values()), **detail)

    meshes: dict[str, Any] = {"": None}
    if (count := largest_divisor(problem.tasks, jax.device_count())) > 1:
        meshes[f", {count} devices"] = metajax.task_mesh(count)
    for (engine_name, engine), (devices, mesh) in itertools.product(
        ENGINES[order].items(), meshes.items()
    ):
        enter_ours(engine_name + devices, problem.model, meta_gradient=engine(), mesh=mesh)
    for label, make in torch_peers.peers(order).items():
        try:
            with patience(most_seconds):
                case = make(problem)
                gradient = flat(g.detach().cpu() for g in case())
        except TimeoutError:
            details[label] = {"failed": f"no result in {most_seconds:.0f} s of a processor"}
            continue
        except ImportError:
            details[label] = {"failed": "not installed"}
            continue
        except Exception as error:  # of PyTorch's compiler or a library, whatever it is
            details[label] = {"failed": type(error).__name__}  # its message names paths
            continue
        enter(label, case, gradient)

    def enter_plain() -> None:
        """The naive version: `vmap` over tasks of a network with native convolutions."""
        native = functools.partial(nn.conv, method="native")
        model = problem.model.clone(convolution=native)
        engine = ENGINES[order]["metajax"]()
        enter_ours(PLAIN, model, meta_gradient=engine, task_chunk=problem.tasks)

    on_cpu = jax.default_backend() == "cpu"
    if not on_cpu:
        enter_plain()
    if not rounds:
        return []
    multiply, flops = timing.matmul_case()
    times = timing.race({**cases, "matmul": multiply}, rounds)
    if on_cpu and slow:
        enter_plain()
        details[PLAIN]["rounds"] = 1
        times |= timing.race({name: cases[name] for name in cases if name == PLAIN}, rounds=1)
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
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--orders", nargs="+", type=int, choices=(2, 1), default=[2, 1])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile_only", action="store_true", help="time and record nothing")
    parser.add_argument("--patience", type=float, default=600.0, metavar="SECONDS")
    parser.add_argument("--devices", type=int, default=0, help="CPU devices; 0: those there are")
    parser.add_argument(
        "--slow",
        action="store_true",
        help="on a CPU also jax with plain vmap, a minute a step, timed once",
    )
    arguments = parser.parse_args()
    if arguments.devices:
        jax.config.update("jax_num_cpu_devices", arguments.devices)
    for name, order in itertools.product(arguments.cases, arguments.orders):
        rounds = 0 if arguments.compile_only else arguments.rounds
        rows = measure(name, order, rounds, arguments.slow, arguments.patience)
        if arguments.compile_only:
            continue
        timing.write(
            "meta_gradient",
            rows,
            key=lambda row: (row["case"], row["order"], row["device"]["kind"]),
            rounds=arguments.rounds,
            peers=timing.peer_versions(),
        )


if __name__ == "__main__":
    main()
