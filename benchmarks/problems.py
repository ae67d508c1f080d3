"""The meta-gradients that the benchmarks compute, with the same data for every library."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import metajax
from benchmarks.sequence_models import Recurrent, Transformer
from metajax import nn


class Problem(NamedTuple):
    """A meta-batch of few-shot classification and its network.

    Attributes:
      model: Flax module, `[examples, ...] -> [examples, ways]`.
      example: the shape of one input, `(height, width, channels)` of an image.
      tasks, ways, shots, queries, num_steps: sizes of the meta-batch and inner steps.
      learning_rate: of the inner loop.
      pool: `"stride"` or `"max"`: how the four convolutions of a `ConvNet` halve the image.
      features: their channels.
    """

    model: Any
    example: tuple[int, ...]
    tasks: int
    ways: int = 5
    shots: int = 1
    queries: int = 15
    num_steps: int = 1
    learning_rate: float = 0.4
    pool: str = ""
    features: int = 0


def omniglot(**sizes: Any) -> Problem:
    defaults = {"tasks": 32, "pool": "stride", "features": 64}
    model = nn.omniglot_conv(sizes.get("ways", 5))
    return Problem(model, (28, 28, 1), **{**defaults, **sizes})


def mini_imagenet(**sizes: Any) -> Problem:
    defaults = {"tasks": 4, "num_steps": 5, "learning_rate": 0.01, "pool": "max", "features": 32}
    model = nn.mini_imagenet_conv(sizes.get("ways", 5))
    return Problem(model, (84, 84, 3), **{**defaults, **sizes})


# Five steps each, small enough that the losses of noise stay finite.
SEVERAL = {"tasks": 8, "queries": 5, "num_steps": 5, "learning_rate": 0.01}


def perceptron(**sizes: Any) -> Problem:
    """Five hidden layers of 512."""
    return Problem(nn.MLP((512,) * 5, 5), **{"example": (784,), **SEVERAL, **sizes})


def residual(**sizes: Any) -> Problem:
    """ResNet-12 on images of 84 x 84."""
    defaults = {"example": (84, 84, 3), **SEVERAL, "tasks": 2, "queries": 1}
    return Problem(nn.resnet12(5), **{**defaults, **sizes})


def recurrent(**sizes: Any) -> Problem:
    """An LSTM of width 128 over sequences of 64."""
    return Problem(Recurrent(128, 5), **{"example": (64, 16), **SEVERAL, **sizes})


def transformer(**sizes: Any) -> Problem:
    """Four layers of width 256 over sequences of 128."""
    defaults = {"example": (128, 16), **SEVERAL, "tasks": 2}
    return Problem(Transformer(256, depth=4, heads=4, outputs=5), **{**defaults, **sizes})


CASES = {
    "omniglot, 15 queries": omniglot(),
    "omniglot, 1 query": omniglot(queries=1),
    "mini-imagenet, 15 queries, 5 steps": mini_imagenet(),
}
# Other shapes, which the benchmarks of the papers' networks do not have.
SHAPES = {
    "omniglot, 20-way, 5 steps": omniglot(
        ways=20, tasks=4, queries=5, num_steps=5, learning_rate=0.1
    ),
    "omniglot, 5 shots": omniglot(shots=5, tasks=16, queries=5),
    "perceptron, 5 x 512, 5 steps": perceptron(),
    "LSTM, 64 x 128, 5 steps": recurrent(),
    "transformer, 4 x 256, 5 steps": transformer(),
    "ResNet-12, 84 x 84, 5 steps": residual(),
}


def episodes(problem: Problem, seed: int = 0) -> metajax.Episode:
    """Random inputs and ordered labels, as NumPy arrays for all frameworks."""
    rng = np.random.default_rng(seed)

    def batch(per_class: int) -> tuple[np.ndarray, np.ndarray]:
        examples = problem.ways * per_class
        x = rng.random((problem.tasks, examples, *problem.example), np.float32)
        labels = np.repeat(np.arange(problem.ways, dtype=np.int32), per_class)
        return x, np.tile(labels, (problem.tasks, 1))

    return metajax.Episode(batch(problem.shots), batch(problem.queries))


def parameters(problem: Problem) -> Any:
    inputs = np.zeros((1, *problem.example), np.float32)
    return jax.jit(problem.model.init)(jax.random.key(0), inputs)


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

    Those of matrix products and convolutions, two for every multiplication. A pass forward costs
    one such count, the gradient of the weights one, that of the inputs one (not of the images).
    Second order adds, for every inner step, the product of the Hessian with a vector: forward
    mode over forward and backward pass, each of whose products has two terms.
    """
    if problem.features:
        layers = _layers(problem)
        forward, to_inputs = sum(layers), sum(layers[1:])
        gradient = 2 * forward + to_inputs
        # Tangents enter with the weights: x k' and x' k forward (x' is zero in the first layer);
        # the same again, twice, for the gradients of weights and inputs.
        product = (forward + to_inputs) + (forward + to_inputs) + 2 * to_inputs
    else:
        gradient, product = _counted(problem)
    support = problem.ways * problem.shots * problem.num_steps
    query = problem.ways * problem.queries
    per_task = support * gradient + query * gradient + (support * product if order == 2 else 0.0)
    return problem.tasks * per_task


def _layers(problem: Problem) -> list[float]:
    """The operations of a `ConvNet` for one image, layer by layer.

    Two for every weight and output position of a convolution or the head.
    """
    height, width, channels = problem.example
    layers = []
    for _ in range(4):
        if problem.pool == "stride":
            height, width = -(-height // 2), -(-width // 2)
        layers.append(2.0 * height * width * 9 * channels * problem.features)
        if problem.pool == "max":
            height, width = height // 2, width // 2
        channels = problem.features
    head_inputs = channels * (height * width if problem.pool == "max" else 1)
    return [*layers, 2.0 * head_inputs * problem.ways]


def _counted(problem: Problem) -> tuple[float, float]:
    """The operations of a gradient and of a Hessian-vector product of any network, for one input.

    As JAX differentiates it.
    """
    params, loss = parameters(problem), make_loss(problem.model.apply)
    batch = np.zeros((1, *problem.example), np.float32), np.zeros(1, np.int32)
    key = jax.random.key(0)
    gradient = jax.grad(lambda params: loss(params, batch, key)[0])
    once = product_flops(gradient, params)
    both = product_flops(lambda p: jax.jvp(gradient, (p,), (p,)), params)
    return once, both - once


def product_flops(fn: Callable[..., Any], *arguments: Any) -> float:
    """The operations of the matrix products in a function, two for every multiplication."""

    def count(jaxpr: Any) -> float:
        total = 0.0
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                (contracted, _), _ = eqn.params["dimension_numbers"]
                shape = eqn.invars[0].aval.shape
                inner = math.prod(shape[axis] for axis in contracted)
                total += 2.0 * inner * eqn.outvars[0].aval.size
            nested = (
                getattr(p, "jaxpr", p) for p in jax.tree.leaves(eqn.params, is_leaf=_is_jaxpr)
            )
            inside = sum(count(each) for each in nested if _is_jaxpr(each))
            total += eqn.params.get("length", 1) * inside
        return total

    return count(jax.make_jaxpr(fn)(*arguments).jaxpr)


def _is_jaxpr(x: Any) -> bool:
    return hasattr(x, "eqns")
