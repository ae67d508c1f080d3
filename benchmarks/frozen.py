"""The cost of frozen parameters in the inner loop, against a hand-written loop of the head.

Command: python -m benchmarks.frozen [--rounds=N]

A body of six layers of 512 x 512 is frozen, and the head adapts by SGD to ten examples of one task.
The hand-written loop contains the head alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import metajax
from benchmarks import timing

WIDTH, DEPTH, RATE = 512, 6, 0.1
STEPS = (2, 4, 8, 16)
Params = dict[str, Any]
Outcome = Callable[[Params, Any, Any], jax.Array]
ENGINES = {
    "second_order": metajax.second_order(remat=False),
    "second_order(remat)": metajax.second_order(remat=True),
    "mixed_mode": metajax.mixed_mode(),
    "first_order": metajax.first_order(),
}


def loss(params: Params, batch: Any, rng: Any) -> tuple[jax.Array, dict[str, Any]]:
    x, y = batch
    for w in params["body"]:
        x = jnp.tanh(x @ w)
    return jnp.mean((x @ params["head"] - y) ** 2), {}


def by_hand(num_steps: int, engine: str) -> Outcome:
    wrap: Callable[[Any], Any] = jax.checkpoint if "remat" in engine else lambda fn: fn
    stop: Callable[[Any], Any] = (
        jax.lax.stop_gradient if engine == "first_order" else lambda grads: grads
    )

    def outcome(params: Params, support: Any, query: Any) -> jax.Array:
        @wrap
        def step(head):
            gradient = jax.grad(lambda h: loss({**params, "head": h}, support, None)[0])(head)
            return head - RATE * stop(gradient)

        head, _ = jax.lax.scan(
            lambda head, _: (step(head), ()), params["head"], None, length=num_steps
        )
        return loss({**params, "head": head}, query, None)[0]

    return outcome


def by_library(num_steps: int, engine: str) -> Outcome:
    optimizer = metajax.adapt_only(optax.sgd(RATE), lambda path: path[0].key == "head")
    adapt = metajax.inner_loop(loss, optimizer, num_steps, meta_gradient=ENGINES[engine])
    objective = metajax.query_loss(loss)

    def outcome(params: Params, support: Any, query: Any) -> jax.Array:
        episode = metajax.Episode(support, query)
        return objective(adapt, metajax.MetaParams(params), episode, jax.random.key(0))[0]

    return outcome


def measure(num_steps: int, rounds: int) -> list[dict[str, Any]]:
    keys = jax.random.split(jax.random.key(0), DEPTH + 1)
    params = {
        "body": [jax.random.normal(k, (WIDTH, WIDTH)) / WIDTH**0.5 for k in keys[:-1]],
        "head": jax.random.normal(keys[-1], (WIDTH, 1)) / WIDTH**0.5,
    }
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    batch = jnp.ones((10, WIDTH)), jnp.ones((10, 1))
    cases, rows = {}, []
    for engine in ENGINES:
        for label, make in (("metajax", by_library), ("by hand", by_hand)):
            gradient = jax.grad(make(num_steps, engine))
            cases[engine, label], program, _ = timing.compiled(gradient, params, batch, batch)
            analysis = program.cost_analysis() or {}
            rows.append(
                {
                    "engine": engine,
                    "loop": label,
                    "num_steps": num_steps,
                    "temporary_of_parameters": timing.temporary_bytes(program) / size,
                    "flops": analysis.get("flops"),
                }
            )
    times = timing.race({" ".join(key): case for key, case in cases.items()}, rounds)
    return [{**row, **times[f"{row['engine']} {row['loop']}"]} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    rows = [row for num_steps in STEPS for row in measure(num_steps, rounds)]
    timing.write("frozen", rows, rounds=rounds)


if __name__ == "__main__":
    main()
