"""Meta-updates compiled for accelerators, on a machine without one.

Command: python -m benchmarks.deviceless [--targets NAME ...]

The compiler of a TPU or GPU runs on any machine once its plugin is installed (`"jax[tpu]"`,
`"jax[cuda12]"`). It reports whether the programs compile, how much memory they need, what the
devices exchange, how many instructions a program executes, each a kernel of a GPU, and how many
bytes they move, but no times. A target whose plugin is missing keeps its rows of the record.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import metajax
from benchmarks import hlo, problems, timing
from benchmarks.scaling import all_reduces
from metajax import nn

# The properties of an NVIDIA H200 that the compiler needs, from its specification.
H200 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 150754820096
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H200"
"""
# Name -> backend, and the description of eight devices.
TARGETS: dict[str, tuple[str, dict[str, Any]]] = {
    "NVIDIA H200": ("gpu", {"platform": "cuda", "target_config": H200, "topology": "1x1x8"}),
    "TPU v5e": ("tpu", {"platform": "tpu", "topology_name": "v5e:2x4"}),
}
ENGINES: dict[str, Callable[[], Any]] = {
    "second_order": metajax.second_order,
    "mixed_mode": metajax.mixed_mode,
    "first_order": metajax.first_order,
}
# Without a device the compiler cannot try tile sizes.
OPTIONS: dict[str, dict[str, bool | str]] = {"gpu": {"xla_gpu_enable_triton_gemm": False}}


def measure(
    problem: problems.Problem, backend: str, devices: Sequence[Any], engine: str, method: Any
) -> dict[str, Any]:
    """Compiles an update for devices that need not exist here, which share the tasks."""
    model = problem.model.clone(convolution=functools.partial(nn.conv, method=method))
    mesh = Mesh(np.asarray(devices), ("tasks",)) if len(devices) > 1 else None
    everywhere = NamedSharding(mesh, PartitionSpec()) if mesh else SingleDeviceSharding(devices[0])
    # The choices that are made on that backend.
    with mock.patch.object(jax, "default_backend", return_value=backend):
        update, arguments = problems.update(
            problem, model.apply, meta_gradient=ENGINES[engine](), mesh=mesh
        )
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
            jax.eval_shape(lambda *arguments: arguments, *arguments),
        )
        lowered = jax.jit(update).lower(*shapes)
        start = time.perf_counter()
        program = lowered.compile(compiler_options=OPTIONS.get(backend))
        seconds = time.perf_counter() - start
    parsed = hlo.parse(program.as_text() or "")
    executed = [(each.opcode, times) for each, times in hlo.executed(parsed)]
    return {
        "devices": len(devices),
        "engine": engine,
        "method": method or "default",
        "compile_seconds": seconds,
        "temporary_bytes": timing.temporary_bytes(program),
        "moved_bytes": hlo.moved_bytes(parsed),
        "instructions": sum(times for _, times in executed),
        "fusions": sum(times for opcode, times in executed if opcode == "fusion"),
        **all_reduces(program),
    }


def make_rows(target: str, devices: Sequence[Any]) -> list[dict[str, Any]]:
    backend, _ = TARGETS[target]
    rows = []
    for (name, problem), engine in itertools.product(problems.CASES.items(), ENGINES):
        settings: list[tuple[problems.Problem, int, str | None]] = [
            (problem, 1, "patches"),
            (problem, 1, "native"),
            # As many tasks as devices can share.
            (problem._replace(tasks=max(problem.tasks, len(devices))), len(devices), None),
        ]
        for mine, count, method in settings:
            row = measure(mine, backend, devices[:count], engine, method)
            rows.append({"target": target, "case": name, "tasks": mine.tasks, **row})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=[*TARGETS])
    targets = parser.parse_args().targets
    jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no such host to ask
    for target in targets:
        try:
            devices = topologies.get_topology_desc(**TARGETS[target][1]).devices
        except RuntimeError as error:
            parser.exit(1, f"{target}: {error}\nIts compiler comes with jax[tpu] or jax[cuda12].\n")
        timing.write(
            "deviceless",
            make_rows(target, devices),
            key=lambda row: (row["case"], row["target"]),
            compilers=timing.peer_versions("libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin"),
        )


if __name__ == "__main__":
    main()
