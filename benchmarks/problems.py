"""The meta-gradients that the benchmarks compute, with the same data for every library."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import metajax
from metajax import nn


class Problem(NamedTuple):
    """A meta-batch of few-shot classification and its network.

    Attributes:
      model: Flax module, `[examples, ...] -> [examples, ways]`.
      pool: `"stride"` or `"max"`: how the four convolutions halve the image.
      features: channels of the convolutions.
      image: `(height, width, channels)`.
      tasks, ways, shots, queries, num_steps: sizes of the meta-batch and inner steps.
      learning_rate: of the inner loop.
    """

    model: Any
    pool: str
    features: int
    image: tuple[int, int, int]
    tasks: int
    ways: int = 5
    shots: int = 1
    queries: int = 15
    num_steps: int = 1
    learning_rate: float = 0.4


def omniglot(**sizes: Any) -> Problem:
    ways = sizes.get("ways", 5)
    defaults = {"tasks": 32}
    return Problem(nn.omniglot_conv(ways), "stride", 64, (28, 28, 1), **{**defaults, **sizes})


def mini_imagenet(**sizes: Any) -> Problem:
    ways = sizes.get("ways", 5)
    defaults = {"tasks": 4, "num_steps": 5, "learning_rate": 0.01}
    return Problem(nn.mini_imagenet_conv(ways), "max", 32, (84, 84, 3), **{**defaults, **sizes})


CASES = {
    "omniglot, 15 queries": omniglot(),
    "omniglot, 1 query": omniglot(queries=1),
    "mini-imagenet, 15 queries, 5 steps": mini_imagenet(),
}


def episodes(problem: Problem, seed: int = 0) -> metajax.Episode:
    """Random images and ordered labels, as NumPy arrays for all frameworks."""
    rng = np.random.default_rng(seed)

    def batch(per_class: int) -> tuple[np.ndarray, np.ndarray]:
        examples = problem.ways * per_class
        x = rng.random((problem.tasks, examples, *problem.image), np.float32)
        labels = np.repeat(np.arange(problem.ways, dtype=np.int32), per_class)
        return x, np.tile(labels, (problem.tasks, 1))

    return metajax.Episode(batch(problem.shots), batch(problem.queries))


def parameters(problem: Problem) -> Any:
    images = np.zeros((1, *problem.image), np.float32)
    return problem.model.init(jax.random.key(0), images)


def make_loss(apply: Any) -> metajax.LossFn:
    def loss(params, batch, rng):
        x, labels = batch
        logits = apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), {}

    return loss


def update(problem: Problem, apply: Any = None, **options: Any) -> tuple[Any, tuple[Any, ...]]:
    """The update of MAML with SGD as the outer optimizer, and its arguments."""
    learner = metajax.maml(
        make_loss(apply or problem.model.apply),
        optax.sgd(problem.learning_rate),
        optax.sgd(1.0),
        num_steps=problem.num_steps,
        **options,
    )
    state = learner.init(parameters(problem))
    return learner.update, (state, episodes(problem), jax.random.key(0))


def useful_flops(problem: Problem, order: int) -> float:
    """The least number of floating-point operations of a meta-gradient, for all tasks.

    Two for every weight and output position of a convolution or the head. A pass forward costs
    one such count, the gradient of the weights one, that of the inputs one (not of the images).
    Second order adds, for every inner step, the product of the Hessian with a vector: forward
    mode over forward and backward pass, each of whose products has two terms.
    """
    height, width, channels = problem.image
    layers = []
    for _ in range(4):
        if problem.pool == "stride":
            height, width = -(-height // 2), -(-width // 2)
        layers.append(2.0 * height * width * 9 * channels * problem.features)
        if problem.pool == "max":
            height, width = height // 2, width // 2
        channels = problem.features
    head_inputs = channels * (height * width if problem.pool == "max" else 1)
    layers.append(2.0 * head_inputs * problem.ways)
    forward, to_inputs = sum(layers), sum(layers[1:])
    gradient = 2 * forward + to_inputs
    # Tangents enter with the weights: x k' and x' k forward (x' is zero in the first layer); the
    # same again, twice, for the gradients of weights and inputs.
    product = (forward + to_inputs) + (forward + to_inputs) + 2 * to_inputs
    support = problem.ways * problem.shots * problem.num_steps
    query = problem.ways * problem.queries
    per_task = support * gradient + query * gradient + (support * product if order == 2 else 0.0)
    return problem.tasks * per_task
