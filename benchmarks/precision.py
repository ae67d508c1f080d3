"""The effect of bfloat16 on accuracy: the same short run in both types.

Command: python -m benchmarks.precision [--meta_steps=N]

Omniglot, 5-way 1-shot, first-order MAML with the paper's sizes. Parameters, statistics, logits and
the meta-gradient are float32 in both runs. Times are of this device; bfloat16 is for accelerators.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import optax

import metajax
from benchmarks import timing
from metajax import nn, train
from metajax.data import Splits, omniglot
from metajax.tasks import FewShot, meta_batch

TASKS, TEST_TASKS, RATE = 32, 600, 2.0


def measure(dtype: Any, meta_steps: int, data: Splits) -> dict[str, Any]:
    model = nn.omniglot_conv(5, dtype)
    loss = metajax.cross_entropy(model.apply)
    few_shot = [
        FewShot(images, ways=5, shots=1, queries=1, rotate=True)
        for images in (data.train, data.validation, data.test)
    ]
    learner = metajax.fomaml(loss, optax.sgd(RATE), optax.adam(1e-3))
    adapt, metric = metajax.inner_loop(loss, optax.sgd(RATE), 3), metajax.accuracy(model.apply)

    def score(state, tasks, rng):
        episodes = meta_batch(tasks, TEST_TASKS, rng)
        return metajax.evaluate(adapt, metric, state, episodes, rng)

    def validate(state, tasks, rng):
        return {"accuracy": score(state, tasks, rng)["mean"][-1]}

    key = jax.random.key(0)
    fitted = train.fit(
        learner,
        model.init(key, few_shot[0].sample(key).support[0]),
        few_shot[0],
        key=key,
        num_meta_steps=meta_steps,
        meta_batch_size=TASKS,
        validation=train.Validation(few_shot[1], validate, "accuracy"),
        steps_per_call=50,
        validate_every=meta_steps // 4,
    )
    test = jax.jit(score)(fitted.best, few_shot[2], key)
    return {
        "dtype": jnp.dtype(dtype or jnp.float32).name,
        "meta_steps": meta_steps,
        "validation_accuracy": float(fitted.best_metrics["accuracy"]),
        "test_accuracy": float(test["mean"][-1]),
        "test_ci95": float(test["ci95"][-1]),
        "seconds": fitted.wall_seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--meta_steps", type=int, default=1_000)
    meta_steps = parser.parse_args().meta_steps
    data = omniglot.load()
    timing.write("precision", [measure(t, meta_steps, data) for t in (None, jnp.bfloat16)])


if __name__ == "__main__":
    main()
