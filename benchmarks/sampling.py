"""Episodes per second: sampled on the device, against a host pipeline over the same images.

Command: python -m benchmarks.sampling [--rounds=N]

Omniglot, 5-way 1-shot with 15 queries, rotated by class; 32 tasks a meta-batch. The host pipeline
is written as users of tensorflow-datasets do: NumPy draws classes and examples, turns and scales
the images, and moves the meta-batch to the device.
"""

from __future__ import annotations

import argparse

import jax
import numpy as np

import metajax
from benchmarks import problems, timing
from metajax.data import omniglot
from metajax.tasks import FewShot, meta_batch

WAYS, SHOTS, QUERIES, TASKS = 5, 1, 15, 32


def host(images: np.ndarray) -> timing.Case:
    rng = np.random.default_rng(0)

    def episode() -> metajax.Episode:
        classes = rng.choice(len(images), WAYS, replace=False)
        parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for c in classes:
            examples = rng.choice(images.shape[1], SHOTS + QUERIES, replace=False)
            drawn = (
                np.rot90(images[c, examples], int(rng.integers(4)), (1, 2)).astype(np.float32) / 255
            )
            parts[0].append(drawn[:SHOTS])
            parts[1].append(drawn[SHOTS:])
        support, query = (
            (np.concatenate(x), np.repeat(np.arange(WAYS, dtype=np.int32), len(x[0])))
            for x in parts
        )
        return metajax.Episode(support, query)

    def batch() -> metajax.Episode:
        episodes = [episode() for _ in range(TASKS)]
        return jax.block_until_ready(
            jax.device_put(jax.tree.map(lambda *xs: np.stack(xs), *episodes))
        )

    return batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    images = omniglot.load().train.images
    tasks = FewShot(images, ways=WAYS, shots=SHOTS, queries=QUERIES, rotate=True)

    def on_device(tasks, key):
        return meta_batch(tasks, TASKS, key)

    device, _, _ = timing.compiled(on_device, tasks, jax.random.key(0))
    problem = problems.omniglot()
    update, arguments = problems.update(problem)
    step, _, _ = timing.compiled(update, *arguments)
    times = timing.race({"device": device, "host": host(images), "meta-update": step}, rounds)
    share = {name: times[name]["median"] / times["meta-update"]["median"] for name in times}
    timing.write(
        "sampling",
        [
            {
                "where": name,
                "meta_batch_seconds": times[name]["median"],
                "episodes_per_second": TASKS / times[name]["median"],
                "share_of_meta_update": share[name],
                "speedup": times["host"]["median"] / times[name]["median"],
            }
            for name in ("device", "host")
        ],
        rounds=rounds,
    )


if __name__ == "__main__":
    main()
