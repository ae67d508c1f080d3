"""The same meta-gradients in PyTorch: by hand as learn2learn does, torch.func, higher, TorchOpt."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from benchmarks.problems import Problem, episodes
from benchmarks.torch_networks import make_network


@functools.cache
def device() -> torch.device:
    """The device on which JAX computes, with products of the same precision (TF32 on GPUs)."""
    platform = jax.default_backend()
    if platform == "cpu":
        return torch.device("cpu")
    if platform != "gpu" or not torch.cuda.is_available():
        raise RuntimeError(
            f"the peers have no {platform} to compute on as JAX does: install a build of PyTorch "
            "for it, or race on the CPU with JAX_PLATFORMS=cpu."
        )
    torch.set_float32_matmul_precision("high")
    return torch.device("cuda")


def tensors(problem: Problem) -> tuple[torch.Tensor, ...]:
    """Support inputs and labels, query inputs and labels; `[tasks, ...]`, images channels first."""
    (xs, ys), (xq, yq) = episodes(problem)

    def inputs(x: np.ndarray) -> torch.Tensor:
        x = np.moveaxis(x, -1, 2) if x.ndim == 5 else x
        return torch.tensor(np.ascontiguousarray(x), device=device())

    def labels(y: np.ndarray) -> torch.Tensor:
        return torch.tensor(y, dtype=torch.long, device=device())

    return inputs(xs), labels(ys), inputs(xq), labels(yq)


def synchronize() -> None:
    if device().type == "cuda":
        torch.cuda.synchronize()


def loop(problem: Problem, order: int) -> Callable[[], Any]:
    """A Python loop over tasks; gradients by `autograd.grad`, as learn2learn's MAML."""
    network, data = make_network(problem).to(device()), tensors(problem)
    params: dict[str, torch.Tensor] = dict(network.named_parameters())

    def step() -> list[torch.Tensor]:
        total = [torch.zeros_like(p) for p in params.values()]
        for xs, ys, xq, yq in zip(*data, strict=True):
            adapted = params
            for _ in range(problem.num_steps):
                value = functional.cross_entropy(functional_call(network, adapted, xs), ys)
                grads = torch.autograd.grad(value, list(adapted.values()), create_graph=order == 2)
                adapted = {
                    name: p - problem.learning_rate * g
                    for (name, p), g in zip(adapted.items(), grads, strict=True)
                }
            value = functional.cross_entropy(functional_call(network, adapted, xq), yq)
            for t, g in zip(total, torch.autograd.grad(value, list(params.values())), strict=True):
                t += g / problem.tasks
        synchronize()
        return total

    return step


def func(problem: Problem, order: int, compile: bool = False) -> Callable[[], Any]:
    """`torch.func`: vmap over tasks of a gradient through a gradient."""
    network, data = make_network(problem).to(device()), tensors(problem)
    params = {name: p.detach() for name, p in network.named_parameters()}
    buffers = dict(network.named_buffers())

    def loss(params, x, y):
        return functional.cross_entropy(functional_call(network, (params, buffers), x), y)

    def task_loss(params, xs, ys, xq, yq):
        adapted = params
        for _ in range(problem.num_steps):
            grads = grad(loss)(adapted, xs, ys)
            if order == 1:
                grads = {name: g.detach() for name, g in grads.items()}
            adapted = {name: p - problem.learning_rate * grads[name] for name, p in adapted.items()}
        return loss(adapted, xq, yq)

    def mean(params, *data):
        return vmap(task_loss, in_dims=(None, 0, 0, 0, 0))(params, *data).mean()

    meta_gradient = torch.compile(grad(mean)) if compile else grad(mean)

    def step() -> list[torch.Tensor]:
        result = meta_gradient(params, *data)
        synchronize()
        return list(result.values())

    return step


def higher_loop(problem: Problem, order: int) -> Callable[[], Any]:
    """`higher`: a functional copy of module and optimizer for every task."""
    import higher

    network, data = make_network(problem).to(device()), tensors(problem)
    optimizer = torch.optim.SGD(network.parameters(), lr=problem.learning_rate)

    def step() -> list[torch.Tensor]:
        network.zero_grad()
        for xs, ys, xq, yq in zip(*data, strict=True):
            with higher.innerloop_ctx(
                network,
                optimizer,
                copy_initial_weights=False,
                track_higher_grads=order == 2,
            ) as (fmodel, diffopt):
                for _ in range(problem.num_steps):
                    diffopt.step(functional.cross_entropy(fmodel(xs), ys))
                value = functional.cross_entropy(fmodel(xq), yq) / problem.tasks
                if order == 2:
                    value.backward()
                else:  # the query gradient at the adapted weights, as higher's users write it
                    for p, g in zip(
                        network.parameters(),
                        torch.autograd.grad(value, fmodel.parameters()),
                        strict=True,
                    ):
                        p.grad = g if p.grad is None else p.grad + g
        synchronize()
        return [p.grad for p in network.parameters() if p.grad is not None]

    return step


def torchopt_loop(problem: Problem, order: int) -> Callable[[], Any]:
    """TorchOpt's differentiable MetaSGD, rolled back after every task."""
    import torchopt

    network, data = make_network(problem).to(device()), tensors(problem)
    inner = torchopt.MetaSGD(network, lr=problem.learning_rate)
    params = list(network.parameters())

    def step() -> list[torch.Tensor]:
        total = [torch.zeros_like(p) for p in params]
        start_network = torchopt.extract_state_dict(network, by="reference")
        start_inner = torchopt.extract_state_dict(inner, by="reference")
        for xs, ys, xq, yq in zip(*data, strict=True):
            for _ in range(problem.num_steps):
                inner.step(functional.cross_entropy(network(xs), ys))
            value = functional.cross_entropy(network(xq), yq) / problem.tasks
            for t, g in zip(total, torch.autograd.grad(value, params), strict=True):
                t += g
            torchopt.recover_state_dict(network, start_network)
            torchopt.recover_state_dict(inner, start_inner)
        synchronize()
        return total

    return step


def peers(order: int) -> dict[str, Callable[[Problem], Callable[[], Any]]]:
    """The libraries that compute a first- or second-order meta-gradient, by name."""
    made: dict[str, Callable[[Problem], Callable[[], Any]]] = {
        "PyTorch loop": lambda problem: loop(problem, order),
        "torch.func": lambda problem: func(problem, order),
        "torch.func + torch.compile": lambda problem: func(problem, order, compile=True),
        "higher": lambda problem: higher_loop(problem, order),
    }
    if order == 2:  # MetaSGD has no first-order mode
        made["TorchOpt"] = lambda problem: torchopt_loop(problem, order)
    return made
