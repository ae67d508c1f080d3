"""Convolution as a matrix product against native convolution, for the papers' networks.

Command: python -m benchmarks.convolution [--rounds=N]

Times the forward and backward pass on the query images of the tasks of a chunk, with a different
kernel for every task or one kernel for all. A layer takes any of these functions as its
`convolution`. `conv` chooses the method and the number of examples whose patches are in memory at a
time. The rows that name either are the measurements behind that choice.
"""

from __future__ import annotations

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import timing
from metajax import nn

# Layer -> image, output channels, strides.
LAYERS = {
    "omniglot, first": ((28, 28, 1), 64, (2, 2)),
    "omniglot, second": ((14, 14, 64), 64, (2, 2)),
    "omniglot, third": ((7, 7, 64), 64, (2, 2)),
    "mini-imagenet, first": ((84, 84, 3), 32, (1, 1)),
    "mini-imagenet, second": ((42, 42, 32), 32, (1, 1)),
    "mini-imagenet, third": ((21, 21, 32), 32, (1, 1)),
    "mini-imagenet, fourth": ((10, 10, 32), 32, (1, 1)),
    # Near the border between patches and row sums.
    "42 x 42, 16 channels to 32": ((42, 42, 16), 32, (1, 1)),
    "10 x 10, 64 channels": ((10, 10, 64), 64, (1, 1)),
    "5 x 5, 64 channels": ((5, 5, 64), 64, (1, 1)),
}
EXAMPLES = 75
CONVOLUTIONS = {
    "conv": nn.conv,
    **{
        f"conv, {method}": functools.partial(nn.conv, method=method)
        for method in ("patches", "row_sums", "native")
    },
    **{
        f"conv, {chunk} at a time": functools.partial(nn.conv, example_chunk=chunk)
        for chunk in (1, 5, 15, 25, EXAMPLES)
    },
}


def gradient(convolution: Any, strides: tuple[int, int], tasks: int) -> Any:
    """The gradient of the sum of squares in images and kernel, for `tasks` of them by `vmap`."""

    def value(kernel: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum(convolution(x, kernel, strides=strides) ** 2)

    of_one = jax.grad(value, (0, 1))
    return jax.vmap(of_one) if tasks > 1 else of_one


def measure(layer: str, tasks: int, rounds: int) -> list[dict[str, Any]]:
    image, features, strides = LAYERS[layer]
    lead = (tasks,) if tasks > 1 else ()
    keys = jax.random.split(jax.random.key(0))
    kernel = jax.random.normal(keys[0], (*lead, 3, 3, image[-1], features))
    x = jax.random.normal(keys[1], (*lead, EXAMPLES, *image))
    cases = {
        name: timing.compiled(gradient(convolution, strides, tasks), kernel, x)[0]
        for name, convolution in CONVOLUTIONS.items()
        if strides[0] == 1 or name != "conv, row_sums"
    }
    times = timing.race(cases, rounds)
    return [
        {
            "layer": layer,
            "tasks": tasks,
            "convolution": name,
            **times[name],
            "of_native": times[name]["median"] / times["conv, native"]["median"],
        }
        for name in cases
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    rows = [row for layer in LAYERS for tasks in (1, 2) for row in measure(layer, tasks, rounds)]
    timing.write("convolution", rows, rounds=rounds, examples=EXAMPLES)


if __name__ == "__main__":
    main()
