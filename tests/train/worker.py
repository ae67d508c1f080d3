"""One of the processes of a run, for the tests of runs over several processes.

python -m tests.train.worker ADDRESS NUM_PROCESSES PROCESS DEVICES WORKDIR [NAME=VALUE ...]
"""

import ast
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from metajax import train
from metajax.tasks import StreamedFewShot, meta_batch


class Counted(np.ndarray):
    """Images that count how many of them were read."""

    read = 0

    def __getitem__(self, index):
        found = np.asarray(super().__getitem__(index))
        Counted.read += found.size // 16
        return found


def images(mesh):
    """Few-shot tasks that are read on the host, and a linear model of them."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 4, 4, 1), np.uint8).view(Counted)

    def loss(params, batch, rng):
        x, labels = batch
        logits = x.reshape(len(x), -1) @ params["w"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), {}

    learner = metajax.maml(loss, optax.sgd(0.1), optax.adam(1e-2), num_steps=2, mesh=mesh)
    tasks = StreamedFewShot(pixels, ways=3, shots=2, queries=2)
    return learner, {"w": jnp.zeros((16, 3))}, tasks, None


def sinusoid(mesh):
    """The run of the other tests, validated."""
    from tests.train import runs

    learner = metajax.maml(runs.loss, optax.sgd(0.01), optax.adam(1e-3), num_steps=2, mesh=mesh)

    def measure(state, tasks, rng):
        episodes = meta_batch(tasks, 4, rng)
        scores = metajax.evaluate(
            learner.inner, metajax.mse(runs.apply), state, episodes, rng, mesh=mesh
        )
        return {"mse": scores["mean"][-1]}

    tasks = metajax.tasks.Sinusoid()
    return learner, runs.initial(), tasks, train.Validation(tasks, measure, "mse", "min")


def main(address, num_processes, process, devices, workdir, *words):
    options = {name: ast.literal_eval(value) for name, value in (x.split("=") for x in words)}
    jax.config.update("jax_num_cpu_devices", int(devices))
    if int(num_processes) > 1:
        jax.distributed.initialize(address, int(num_processes), int(process))
    from tests.train import runs

    mesh = metajax.task_mesh() if options.pop("with_mesh", True) else None
    build = {"sinusoid": sinusoid, "images": images}[options.pop("what", "sinusoid")]
    learner, params, tasks, validation = build(mesh)
    result = train.fit(
        learner,
        params,
        tasks,
        **{
            **runs.SETTINGS,
            "meta_batch_size": 4,
            "workdir": workdir,
            "config": {},
            "validation": validation,
            "mesh": mesh,
            **options,
        },
    )
    print("stopped by", result.stopped_by, "at", int(result.state.step), "read", Counted.read)
    arrays = jax.device_get(result.state.meta_params.params)
    np.savez(Path(workdir) / f"params-{process}.npz", **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
