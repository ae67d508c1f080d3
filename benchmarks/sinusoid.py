"""Sinusoid MAML, meta-iterations per second, against PyTorch on the same sizes.

Command: python -m benchmarks.sinusoid [--rounds=N]

Finn 2017, section 5.1: 1-40-40-1 network, 25 tasks, 10 shots, one inner step. Ours samples its
tasks on the device and runs 1,000 meta-iterations per call; the peers sample with PyTorch.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import jax
import optax
import torch
from torch.func import functional_call, grad, vmap

import metajax
from benchmarks import timing
from benchmarks.torch_peers import device, synchronize
from metajax import nn
from metajax.tasks import Sinusoid, meta_batch

TASKS, SHOTS, RATE, STEPS = 25, 10, 0.01, 1_000


def ours() -> timing.Case:
    model, tasks, key = nn.sinusoid_mlp(), Sinusoid(shots=SHOTS, queries=SHOTS), jax.random.key(0)
    loss = metajax.squared_error(model.apply)
    learner = metajax.maml(loss, optax.sgd(RATE), optax.adam(1e-3))
    state = learner.init(model.init(key, tasks.sample(key).support[0]))

    def run(state, key):
        def body(state, key):
            task_rng, update_rng = jax.random.split(key)
            return learner.update(state, meta_batch(tasks, TASKS, task_rng), update_rng)

        return jax.lax.scan(body, state, jax.random.split(key, STEPS))

    return timing.compiled(run, state, key)[0]


def _sample() -> tuple[torch.Tensor, ...]:
    amplitude = torch.rand(TASKS, 1, 1, device=device()) * 4.9 + 0.1
    phase = torch.rand(TASKS, 1, 1, device=device()) * math.pi
    x = torch.rand(TASKS, 2 * SHOTS, 1, device=device()) * 10 - 5
    y = amplitude * torch.sin(x - phase)
    return x[:, :SHOTS], y[:, :SHOTS], x[:, SHOTS:], y[:, SHOTS:]


def _network() -> torch.nn.Module:
    linear, relu = torch.nn.Linear, torch.nn.ReLU
    layers = (linear(1, 40), relu(), linear(40, 40), relu(), linear(40, 1))
    return torch.nn.Sequential(*layers).to(device())


def torch_loop(steps: int) -> timing.Case:
    network = _network()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    mse = torch.nn.functional.mse_loss

    def step() -> None:
        optimizer.zero_grad()
        params: dict[str, torch.Tensor] = dict(network.named_parameters())
        for xs, ys, xq, yq in zip(*_sample(), strict=True):
            value = mse(functional_call(network, params, xs), ys)
            grads = torch.autograd.grad(value, list(params.values()), create_graph=True)
            adapted = {
                name: p - RATE * g for (name, p), g in zip(params.items(), grads, strict=True)
            }
            (mse(functional_call(network, adapted, xq), yq) / TASKS).backward()
        optimizer.step()

    return _repeat(step, steps)


def torch_func(steps: int) -> timing.Case:
    network = _network()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    mse = torch.nn.functional.mse_loss

    def loss(params, x, y):
        return mse(functional_call(network, params, x), y)

    def task_loss(params, xs, ys, xq, yq):
        grads = grad(loss)(params, xs, ys)
        return loss({name: p - RATE * grads[name] for name, p in params.items()}, xq, yq)

    def mean(params, *data):
        return vmap(task_loss, in_dims=(None, 0, 0, 0, 0))(params, *data).mean()

    def step() -> None:
        params = {name: p.detach() for name, p in network.named_parameters()}
        grads = grad(mean)(params, *_sample())
        for name, p in network.named_parameters():
            p.grad = grads[name]
        optimizer.step()

    return _repeat(step, steps)


def _repeat(step: Callable[[], None], steps: int) -> timing.Case:
    def run() -> None:
        for _ in range(steps):
            step()
        synchronize()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    counts = {"metajax": STEPS, "PyTorch loop": 10, "torch.func": 50}
    times = timing.race(
        {
            "metajax": ours(),
            "PyTorch loop": torch_loop(counts["PyTorch loop"]),
            "torch.func": torch_func(counts["torch.func"]),
        },
        rounds,
    )
    rate = {name: counts[name] / t["median"] for name, t in times.items()}
    rows: list[dict[str, Any]] = [
        {
            "library": name,
            "meta_iterations_per_second": rate[name],
            "speedup": rate["metajax"] / rate[name],
        }
        for name in times
    ]
    timing.write(
        "sinusoid",
        rows,
        key=lambda row: row["device"]["kind"],
        rounds=rounds,
        peers=timing.peer_versions("torch"),
    )


if __name__ == "__main__":
    main()
