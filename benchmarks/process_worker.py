"""One of the processes that `python -m benchmarks.processes` compares.

python -m benchmarks.process_worker WHAT CASE ADDRESS NUM_PROCESSES PROCESS DEVICES OUT
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import metajax
from metajax import nn, train
from metajax.tasks import FewShot, Sinusoid, StreamedFewShot
from metajax.train.processes import on_mesh

META_STEPS = 4
TASKS = 4
TASKS_PER_CORE = 16


class Run(NamedTuple):
    """A run to be shared by the devices of a mesh.

    Attributes:
      learner: the meta-learner.
      params: where it starts.
      tasks: its tasks.
    """

    learner: metajax.MetaLearner
    params: Any
    tasks: Any


def sinusoid(mesh: Mesh | None) -> Run:
    model, tasks = nn.sinusoid_mlp(), Sinusoid(shots=10, queries=10)
    learner = metajax.maml(
        metajax.squared_error(model.apply), optax.sgd(0.01), optax.adam(1e-3), mesh=mesh
    )
    return Run(learner, model.init(jax.random.key(0), jnp.zeros((1, 1))), tasks)


def classification(mesh: Mesh | None, model: Any, tasks: Any, shape: tuple[int, ...]) -> Run:
    learner = metajax.maml(
        metajax.cross_entropy(model.apply),
        optax.sgd(0.1),
        optax.adam(1e-3),
        num_steps=2,
        mesh=mesh,
    )
    return Run(learner, model.init(jax.random.key(0), jnp.zeros((1, *shape))), tasks)


def omniglot(mesh: Mesh | None) -> Run:
    """Images of Omniglot's shape, on the devices."""
    images = np.random.default_rng(0).integers(0, 256, (20, 20, 28, 28, 1), np.uint8)
    tasks = FewShot(images, ways=5, shots=1, queries=5)
    return classification(mesh, nn.omniglot_conv(5), tasks, images.shape[2:])


def mini_imagenet(mesh: Mesh | None) -> Run:
    """Images of Mini-ImageNet's shape, streamed from the host."""
    images = np.random.default_rng(0).integers(0, 256, (10, 20, 84, 84, 3), np.uint8)
    tasks = StreamedFewShot(images, ways=5, shots=1, queries=3)
    return classification(mesh, nn.mini_imagenet_conv(5), tasks, images.shape[2:])


def navigation(mesh: Mesh | None) -> Run:
    from experiments import agents
    from experiments import navigation as launcher
    from metajax import rl

    settings = launcher.FINN
    agent = agents.make_agent(settings, launcher.make_env(settings), mesh)
    return Run(agent.learner, agent.params, rl.Tasks(agent.env.sample_tasks))


def sharded(mesh: Mesh | None) -> Run:
    """A network whose parameters are sharded over the axis `model`, adapted by Adam."""
    rng = np.random.default_rng(0)
    shapes = {"w": (1, 32), "b": (32,), "v": (32, 1)}
    specs = {"w": (None, "model"), "b": ("model",), "v": ("model", None)}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    if mesh is not None and "model" in mesh.axis_names:
        place = {name: NamedSharding(mesh, PartitionSpec(*spec)) for name, spec in specs.items()}
        params = jax.jit(lambda: params, out_shardings=place)()

    def apply(params, x):
        return jnp.tanh(x @ params["w"] + params["b"][None]) @ params["v"]

    learner = metajax.maml(
        metajax.squared_error(apply),
        optax.adam(0.01),
        optax.adam(1e-3),
        num_steps=3,
        mesh=mesh,
    )
    return Run(learner, params, Sinusoid(shots=10, queries=10))


CASES: dict[str, Callable[[Mesh | None], Run]] = {
    "sinusoid": sinusoid,
    "omniglot": omniglot,
    "mini-imagenet, streamed": mini_imagenet,
    "navigation": navigation,
    "sharded, 1 x 4": sharded,
    "sharded, 2 x 2": sharded,
}


def make_mesh(case: str) -> Mesh:
    """All devices, which share the tasks; of a sharded model, `tasks` x `model`."""
    if not case.startswith("sharded"):
        return metajax.task_mesh()
    shape = [int(word) for word in case.split(", ")[1].split(" x ")]
    return Mesh(np.asarray(jax.devices()).reshape(shape), ("tasks", "model"))


def trained(case: str, devices: int) -> dict[str, np.ndarray]:
    """The parameters after some meta-updates in float64, by name.

    In float32 Adam turns the rounding of small gradients into steps of full size.
    """
    mesh = make_mesh(case) if devices > 1 else None
    run = CASES[case](mesh)
    fitted = train.fit(
        run.learner,
        jax.tree.map(lambda x: x.astype(jnp.float64), run.params),
        run.tasks,
        key=jax.random.key(1),
        num_meta_steps=META_STEPS,
        meta_batch_size=TASKS,
        steps_per_call=2,
        mesh=mesh,
        show_progress=False,
    )
    state = (
        fitted.state
        if mesh is None
        else jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))(fitted.state)
    )
    leaves = jax.tree_util.tree_leaves_with_path(state.meta_params)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def seconds(case: str, rounds: int) -> float:
    """The median of a meta-update with `TASKS_PER_CORE` tasks a device."""
    mesh = metajax.task_mesh()
    run = CASES[case](mesh)
    state = on_mesh(mesh, run.learner.init(run.params))
    key = on_mesh(mesh, jax.random.key(0))
    tasks = on_mesh(mesh, run.tasks)

    @jax.jit
    def update(state, tasks, key):
        episodes = metajax.tasks.meta_batch(tasks, TASKS_PER_CORE * mesh.size, key)
        return run.learner.update(state, episodes, key)[0]

    state = jax.block_until_ready(update(state, tasks, key))
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        state = jax.block_until_ready(update(state, tasks, key))
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def main(
    what: str, case: str, address: str, num: str, process: str, devices: str, out: str
) -> None:
    if what.startswith("seconds"):  # before JAX starts its threads
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(process)]})
    jax.config.update("jax_enable_x64", what == "params")
    jax.config.update("jax_num_cpu_devices", int(devices))
    if int(num) > 1:
        jax.distributed.initialize(
            address,
            int(num),
            int(process),
            initialization_timeout=3600,
            shutdown_timeout_seconds=3600,
        )
    if what.startswith("seconds"):
        found = seconds(case, int(what.partition("=")[2]))
        if train.is_first():
            Path(out).write_text(json.dumps(found))
    else:
        arrays = trained(case, int(num) * int(devices))
        if train.is_first():
            np.savez(out, allow_pickle=False, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
