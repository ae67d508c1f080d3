"""How the gradient crosses the inner loop: time, memory and error of every engine.

Command: python -m benchmarks.engines [--rounds=N]

Omniglot's network, 5-way 1-shot with 15 queries, 8 tasks. The error is that of the float32
meta-gradient against the float64 one of `second_order()`, relative in norm. For `first_order()` and
`implicit()` it includes the error of the approximation; the problem of `implicit()` has a strong
proximal term and small steps, which come close to its minimum. A second network, a multi-layer
perceptron, has more parameters than activations.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from benchmarks import problems, timing
from metajax import nn

ENGINES = {
    "second_order": metajax.second_order(remat=False),
    "second_order(remat)": metajax.second_order(remat=True),
    "mixed_mode": metajax.mixed_mode(),
    "first_order": metajax.first_order(),
    "implicit": metajax.implicit(),
}
STEPS = (1, 5, 20, 100)
# The images are noise, which batch normalization amplifies: curvature at the start is large.
PROXIMAL, PROXIMAL_RATE = 400.0, 5e-4


def networks() -> dict[str, problems.Problem]:
    conv = problems.omniglot(tasks=8, learning_rate=0.1)
    return {"conv": conv, "mlp": conv._replace(model=nn.omniglot_mlp(5))}


def make_gradient(
    problem: problems.Problem, engine: metajax.MetaGradient, proximal: bool
) -> tuple[Any, Any]:
    """The update with an outer optimizer that keeps the meta-gradient as its state."""
    loss = problems.make_loss(problem.model.apply)
    keep = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda grads, state, params=None: (jax.tree.map(jnp.zeros_like, grads), grads),
    )
    adapt = metajax.inner_loop(
        loss,
        optax.sgd(PROXIMAL_RATE if proximal else problem.learning_rate),
        problem.num_steps,
        meta_gradient=engine,
        proximal=PROXIMAL if proximal else 0.0,
    )
    learner = metajax.meta_learner(adapt, metajax.query_loss(loss), keep)
    state = learner.init(problems.parameters(problem))
    return learner.update, (state, problems.episodes(problem), jax.random.key(0))


def exact(problem: problems.Problem, proximal: bool) -> np.ndarray:
    with jax.enable_x64(True):
        engine = metajax.second_order(remat=True)
        update, (state, episodes, key) = make_gradient(problem, engine, proximal)
        wide = jax.tree.map(
            lambda x: np.asarray(x, np.float64) if x.dtype == np.float32 else x, (state, episodes)
        )
        return flat(jax.jit(update)(*wide, key)[0].opt_state)


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)])


def measure(name: str, problem: problems.Problem, rounds: int) -> list[dict[str, Any]]:
    exactly = {proximal: exact(problem, proximal) for proximal in (False, True)}
    cases: dict[str, timing.Case] = {}
    rows: dict[str, dict[str, Any]] = {}
    for label, engine in ENGINES.items():
        update, arguments = make_gradient(problem, engine, engine.implicit)
        truth = exactly[engine.implicit]
        cases[label], program, seconds = timing.compiled(update, *arguments)
        found = flat(cases[label]()[0].opt_state)
        rows[label] = {
            "network": name,
            "num_steps": problem.num_steps,
            "engine": label,
            "temporary_bytes": timing.temporary_bytes(program),
            "compile_seconds": seconds,
            "gradient_error": float(np.linalg.norm(found - truth) / np.linalg.norm(truth)),
            "parameter_bytes": int(4 * truth.size),
        }
    times = timing.race(cases, rounds)
    reference = times["second_order"]["median"]
    return [
        {**rows[label], **times[label], "time_ratio": times[label]["median"] / reference}
        for label in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    # Full float32 products on any device, so that the error is that of the engine.
    jax.config.update("jax_default_matmul_precision", "highest")
    rows = [
        row
        for name, problem in networks().items()
        for steps in STEPS
        for row in measure(name, problem._replace(num_steps=steps), rounds)
    ]
    timing.write("engines", rows, rounds=rounds)


if __name__ == "__main__":
    main()
