"""Networks for sequences that race beside those of `metajax.nn`, in Flax."""

from __future__ import annotations

from typing import Any

import jax
from flax import linen


class Recurrent(linen.Module):
    """An LSTM over `[examples, length, features]`, whose last state is classified."""

    width: int
    outputs: int

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        states: Any = linen.RNN(linen.OptimizedLSTMCell(self.width, name="lstm"))(x)
        return linen.Dense(self.outputs, name="head")(states[:, -1])


class Transformer(linen.Module):
    """Blocks of attention and of two layers, normalized first; the mean position is classified."""

    width: int
    depth: int
    heads: int
    outputs: int

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        places = self.param("places", linen.initializers.normal(0.02), (x.shape[1], self.width))
        x = linen.Dense(self.width, name="embedding")(x) + places[None]
        for i in range(self.depth):
            y = linen.LayerNorm(name=f"norm_a{i}")(x)
            qkv = linen.Dense(3 * self.width, name=f"qkv{i}")(y)
            q, k, v = qkv.reshape(*x.shape[:2], 3, self.heads, -1).transpose(2, 0, 3, 1, 4)
            weights = linen.softmax(q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5)
            mixed = (weights @ v).swapaxes(1, 2).reshape(x.shape)
            x = x + linen.Dense(self.width, name=f"out{i}")(mixed)
            y = linen.LayerNorm(name=f"norm_b{i}")(x)
            y = linen.gelu(linen.Dense(4 * self.width, name=f"up{i}")(y))
            x = x + linen.Dense(self.width, name=f"down{i}")(y)
        return linen.Dense(self.outputs, name="head")(x.mean(1))
