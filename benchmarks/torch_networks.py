"""The networks of the races in PyTorch, in its own layout, with the weights of the JAX networks."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import torch
from torch.nn import functional

from benchmarks.problems import Problem, parameters
from benchmarks.sequence_models import Recurrent, Transformer
from metajax import nn

Arrays = dict[str, np.ndarray]


class Network(torch.nn.Module):
    """A network whose parameters are those of a problem's JAX network."""

    def __init__(self, problem: Problem):
        super().__init__()
        self.problem = problem
        for name, array in self.arrays(parameters(problem), problem).items():
            self.register_parameter(name, torch.nn.Parameter(torch.tensor(array)))

    @staticmethod
    def arrays(tree: Any, problem: Problem) -> Arrays:
        """The parameters of the JAX network, or a gradient, by the names and layout of PyTorch."""
        found = {}
        for path, array in jax.tree_util.tree_leaves_with_path(tree["params"]):
            *layer, kind = (entry.key for entry in path)
            array = np.asarray(array)
            matrix = kind == "kernel" and array.ndim == 2
            found["_".join([*layer, kind])] = np.ascontiguousarray(array.T if matrix else array)
        return found

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, getattr(self, f"{name}_kernel"), getattr(self, f"{name}_bias"))


class PerceptronNetwork(Network):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        for i in range(len(self.problem.model.features)):
            x = functional.relu(self.linear(f"Dense_{i}", x))
        return self.linear("head", x)


class RecurrentNetwork(Network):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def gates(kind: str, part: str) -> torch.Tensor:
            return torch.cat([getattr(self, f"lstm_{kind}{gate}_{part}") for gate in "ifgo"])

        from_input = functional.linear(x, gates("i", "kernel"))
        from_state, bias = gates("h", "kernel"), gates("h", "bias")
        h = c = x.new_zeros(x.shape[0], self.problem.model.width)
        for at in from_input.unbind(1):
            i, f, g, o = (at + functional.linear(h, from_state, bias)).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.linear("head", h)


class TransformerNetwork(Network):
    places: torch.Tensor

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        scale, bias = getattr(self, f"{name}_scale"), getattr(self, f"{name}_bias")
        return functional.layer_norm(x, x.shape[-1:], scale, bias, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        model = self.problem.model
        x = self.linear("embedding", x) + self.places
        for i in range(model.depth):
            qkv = self.linear(f"qkv{i}", self.norm(f"norm_a{i}", x))
            q, k, v = qkv.unflatten(-1, (3, model.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
            # The fused attention has no second derivative.
            weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)
            x = x + self.linear(f"out{i}", (weights @ v).transpose(1, 2).flatten(2))
            y = functional.gelu(
                self.linear(f"up{i}", self.norm(f"norm_b{i}", x)), approximate="tanh"
            )
            x = x + self.linear(f"down{i}", y)
        return self.linear("head", x.mean(1))


class ConvolutionalNetwork(Network):
    """Channels first, native convolutions and batch norm."""

    one: torch.Tensor
    head: torch.nn.Parameter
    head_bias: torch.nn.Parameter

    def __init__(self, problem: Problem):
        super().__init__(problem)
        self.pool = problem.pool
        self.register_buffer("one", torch.ones(problem.features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stride = 2 if self.pool == "stride" else 1
        for i in range(4):
            if stride == 2 and x.shape[-1] % 2 == 0:  # "SAME" pads after the image only
                x, padding = functional.pad(x, (0, 1, 0, 1)), 0
            else:
                padding = 1
            kernel, bias = getattr(self, f"kernel{i}"), getattr(self, f"bias{i}")
            x = functional.conv2d(x, kernel, stride=stride, padding=padding)
            x = functional.batch_norm(x, None, None, self.one, bias, training=True, eps=1e-3)
            x = functional.relu(x)
            x = functional.max_pool2d(x, 2) if self.pool == "max" else x
        x = x.flatten(1) if self.pool == "max" else x.mean((2, 3))
        return functional.linear(x, self.head, self.head_bias)

    @staticmethod
    def arrays(tree: Any, problem: Problem) -> Arrays:
        params = jax.tree.map(np.asarray, tree["params"])
        found: Arrays = {}
        for i in range(4):
            found[f"kernel{i}"] = params[f"Conv_{i}"]["kernel"].transpose(3, 2, 0, 1)
            found[f"bias{i}"] = params[f"BatchNorm_{i}"]["bias"]
        # Height, width, channels in JAX; channels first here.
        head = params["head"]["kernel"]
        head = head.reshape(-1, problem.features, head.shape[-1]).transpose(2, 1, 0)
        found["head"] = head.reshape(head.shape[0], -1)
        found["head_bias"] = params["head"]["bias"]
        return {name: np.ascontiguousarray(array) for name, array in found.items()}


class ResidualNetwork(Network):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        slope = self.problem.model.slope
        for block in range(len(self.problem.model.features)):
            first = 4 * block
            y = functional.leaky_relu(self.normalized(first, x), slope)
            y = functional.leaky_relu(self.normalized(first + 1, y), slope)
            y = self.normalized(first + 2, y) + self.normalized(first + 3, x)
            x = functional.max_pool2d(functional.leaky_relu(y, slope), 2)
        return self.linear("head", x.mean((2, 3)))

    def normalized(self, i: int, x: torch.Tensor) -> torch.Tensor:
        kernel = getattr(self, f"Conv_{i}_kernel")
        scale, bias = getattr(self, f"BatchNorm_{i}_scale"), getattr(self, f"BatchNorm_{i}_bias")
        y = functional.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
        return functional.batch_norm(y, None, None, scale, bias, training=True, eps=1e-3)

    @staticmethod
    def arrays(tree: Any, problem: Problem) -> Arrays:
        found = Network.arrays(tree, problem)
        return {
            name: np.ascontiguousarray(array.transpose(3, 2, 0, 1)) if array.ndim == 4 else array
            for name, array in found.items()
        }


NETWORKS: dict[type, type[Network]] = {
    nn.MLP: PerceptronNetwork,
    nn.ConvNet: ConvolutionalNetwork,
    nn.ResNet: ResidualNetwork,
    Recurrent: RecurrentNetwork,
    Transformer: TransformerNetwork,
}


def make_network(problem: Problem) -> Network:
    return NETWORKS[type(problem.model)](problem)


def arrays(tree: Any, problem: Problem) -> Arrays:
    """The parameters of a problem's network, or a gradient, by the names and layout of PyTorch."""
    return NETWORKS[type(problem.model)].arrays(tree, problem)
