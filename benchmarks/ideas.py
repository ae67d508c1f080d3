"""Ideas that might be faster, each in turn with what the library does instead.

Command: python -m benchmarks.ideas [--ideas NAME ...] [--rounds=N]

On a CPU. What is measured here was not adopted, or its rows would be those of the library: a ratio
above 1 is slower than the library.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

import metajax
from benchmarks import problems, timing
from metajax import nn
from metajax.machine import num_cores
from metajax.parallel import TASKS
from metajax.tasks import FewShot, meta_batch

EVERY = 10**9
Race = Mapping[str, tuple[timing.Case, timing.Case]]  # of the library, and of the idea
# Winograd's transforms of F(2x2, 3x3): of an image's 4 x 4, of a kernel, and of a product.
IMAGE = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float32)
KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float32)


def winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 3 x 3 convolution with padding and stride 1 in 16 products for every 2 x 2 of the output.

    A direct one has 36.

    References:
      Lavin and Gray, `Fast Algorithms for Convolutional Neural Networks
      <https://arxiv.org/abs/1509.09308>`_, 2015, section 4.1.
    """
    examples, height, width, _ = x.shape
    rows, columns = -(-height // 2), -(-width // 2)
    x = jnp.pad(x, ((0, 0), (1, 2 * rows - height + 1), (1, 2 * columns - width + 1), (0, 0)))
    # [examples, 4, rows, columns, 4, channels]
    tiles = jnp.stack(
        [
            jnp.stack([x[:, i : i + 2 * rows : 2, j : j + 2 * columns : 2] for j in range(4)], 3)
            for i in range(4)
        ],
        1,
    )
    tiles = jnp.einsum("ui,vj,nircjd->uvnrcd", IMAGE, IMAGE, tiles)
    weights = jnp.einsum("ui,vj,ijdo->uvdo", KERNEL, KERNEL, kernel)
    products = jnp.einsum("uvnrcd,uvdo->uvnrco", tiles, weights)
    y = jnp.einsum("iu,jv,uvnrco->nricjo", OUTPUT, OUTPUT, products)
    return y.reshape(examples, 2 * rows, 2 * columns, -1)[:, :height, :width]


def winograd_race() -> Race:
    """Forward and backward pass of the layers of Mini-ImageNet, 75 images."""

    def case(convolution: Callable[..., Any], size: int) -> timing.Case:
        keys = jax.random.split(jax.random.key(0))
        x = jax.random.normal(keys[0], (75, size, size, 32))
        kernel = jax.random.normal(keys[1], (3, 3, 32, 32)) / 17
        value = lambda kernel, x: jnp.sum(convolution(x, kernel) ** 2)  # noqa: E731
        return timing.compiled(jax.grad(value, (0, 1)), kernel, x)[0]

    found = {}
    for size in (42, 21, 10):
        ours, theirs = case(nn.conv, size), case(winograd, size)
        for one, other in zip(ours(), theirs(), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3 * float(abs(one).max()))
        found[f"{size} x {size}, 32 channels"] = ours, theirs
    return found


def compiler_options(**options: bool | str) -> Callable[[], Race]:
    """A meta-gradient of Omniglot and one of Mini-ImageNet with other options of XLA."""

    def race() -> Race:
        found = {}
        for name, problem in problems.CASES.items():
            update, arguments = problems.update(problem)
            lowered = jax.jit(update).lower(*arguments)
            program, other = lowered.compile(), lowered.compile(compiler_options=options)
            found[name] = _call(program, arguments), _call(other, arguments)
        return found

    return race


def _call(program: jax.stages.Compiled, arguments: Any) -> timing.Case:
    return lambda: jax.block_until_ready(program(*arguments))


def shared_first_step() -> Race:
    """The gradients of the first inner step, where all tasks still have the same weights.

    Here for several tasks in one product, and for one task after another as the library does, on
    one device and shared over all.
    """
    found, mesh = {}, metajax.task_mesh()
    spread: Any = functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P(), P(TASKS)),
        out_specs=P(TASKS),
    )
    for name, problem in problems.CASES.items():
        loss = problems.make_loss(problem.model.apply)
        params, support = problems.parameters(problem), problems.episodes(problem).support

        def gradient(params: Any, task: Any, loss: Any = loss) -> Any:
            return jax.grad(lambda p: loss(p, task, None)[0])(params)

        def one_by_one(params: Any, tasks: Any, gradient: Any = gradient) -> Any:
            return jax.lax.map(lambda task: gradient(params, task), tasks)

        def together(params: Any, tasks: Any, gradient: Any = gradient) -> Any:
            return jax.vmap(gradient, (None, 0))(params, tasks)

        for where, change in (("", lambda fn: fn), (f", {mesh.size} devices", spread)):
            found[name + where] = (
                timing.compiled(change(one_by_one), params, support)[0],
                timing.compiled(change(together), params, support)[0],
            )
    return found


def narrow_types() -> Race:
    """A meta-gradient whose network computes in bfloat16, its parameters in float32."""
    found = {}
    for name, problem in problems.CASES.items():
        cases = []
        for dtype in (None, jnp.bfloat16):
            update, arguments = problems.update(problem, problem.model.clone(dtype=dtype).apply)
            cases.append(timing.compiled(update, *arguments)[0])
        found[name] = (cases[0], cases[1])
    return found


def all_at_once() -> Race:
    """Convolutions of all examples in one product, whose results the backward pass finds stored."""
    found = {}
    for name, problem in problems.CASES.items():
        whole = functools.partial(nn.conv, example_chunk=EVERY)
        cases = []
        for convolution in (nn.conv, whole):
            model = problem.model.clone(convolution=convolution)
            update, arguments = problems.update(problem, model.apply)
            cases.append(timing.compiled(update, *arguments)[0])
        found[name] = (cases[0], cases[1])
    return found


def one_key() -> Race:
    """Meta-batches of Omniglot's size with one draw for all of their tasks."""
    images = np.random.default_rng(0).integers(0, 256, (1200, 20, 28, 28, 1), np.uint8)
    tasks = FewShot(images, ways=5, shots=1, queries=15, rotate=True)

    def at_once(tasks: FewShot, key: jax.Array) -> metajax.Episode:
        classes, examples, turns = jax.random.split(key, 3)
        scores = jax.random.uniform(classes, (32, 1200))
        order = jnp.argsort(jax.random.uniform(examples, (32, 5, 20)), axis=-1)[..., :16]
        draw = (
            jax.lax.top_k(scores, 5)[1],
            order,
            jax.random.randint(turns, (32, 5), 0, 4),
        )
        return jax.vmap(lambda c, e, t: tasks.episode(jnp.asarray(tasks.images)[c[:, None], e], t))(
            *draw
        )

    key = jax.random.key(0)
    ours = timing.compiled(lambda tasks, key: meta_batch(tasks, 32, key), tasks, key)[0]
    return {"Omniglot, 32 tasks": (ours, timing.compiled(at_once, tasks, key)[0])}


def whole_meta_batch() -> Race:
    """Evaluations of 32 tasks in one `vmap`, instead of as many at a time as fit the cache."""
    found = {}
    for name, problem in problems.CASES.items():
        loss, apply = problems.make_loss(problem.model.apply), problem.model.apply
        adapt = metajax.inner_loop(loss, optax.sgd(problem.learning_rate), num_steps=5)
        problem = problem._replace(tasks=32)
        episodes, params = problems.episodes(problem), problems.parameters(problem)
        learner = metajax.fomaml(loss, optax.sgd(problem.learning_rate), optax.adam(1e-3))
        state = learner.init(params)
        cases = []
        for chunk in (None, 32):

            def score(state: Any, episodes: Any, key: Any, chunk: Any = chunk) -> Any:
                metric = metajax.accuracy(apply)  # noqa: B023
                return metajax.evaluate(adapt, metric, state, episodes, key, task_chunk=chunk)  # noqa: B023

            cases.append(timing.compiled(score, state, episodes, jax.random.key(0))[0])
        found[name] = (cases[0], cases[1])
    return found


IDEAS: dict[str, Callable[[], Race]] = {
    "Winograd convolutions": winograd_race,
    "products by oneDNN": compiler_options(xla_cpu_use_onednn=True),
    "vectors of 512 bits": compiler_options(xla_cpu_prefer_vector_width="512"),
    "fast-math": compiler_options(xla_cpu_enable_fast_math=True),
    "networks in bfloat16": narrow_types,
    "convolutions of all examples at once": all_at_once,
    "the first inner step for several tasks at once": shared_first_step,
    "one random draw for all tasks": one_key,
    "evaluation of all tasks at once": whole_meta_batch,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ideas", nargs="+", choices=IDEAS, default=[*IDEAS])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", num_cores())
    for idea in arguments.ideas:
        rows = []
        for case, (ours, theirs) in IDEAS[idea]().items():
            times = timing.race({"library": ours, "idea": theirs}, arguments.rounds)
            seconds = {name: each["median"] for name, each in times.items()}
            ratio = seconds["idea"] / seconds["library"]
            rows.append({"idea": idea, "case": case, "seconds": seconds, "ratio": ratio})
        timing.write("ideas", rows, key=lambda row: row["idea"], rounds=arguments.rounds)


if __name__ == "__main__":
    main()
