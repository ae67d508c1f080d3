"""A small decoder of bytes, with low-rank adapters beside its dense layers on request."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen
from flax.linen.initializers import normal, zeros

from metajax.base import Array

BYTES = 256


class Dense(linen.Module):
    """A dense layer without bias, with a low-rank product beside it if `rank` is positive.

    The product :math:`x A B` starts at zero, because B does.
    """

    features: int
    rank: int = 0

    @linen.compact
    def __call__(self, x: Array) -> Array:
        y = linen.Dense(self.features, use_bias=False)(x)
        if not self.rank:
            return y
        size = x.shape[-1]
        down = self.param("lora_down", normal(size**-0.5), (size, self.rank))
        up = self.param("lora_up", zeros, (self.rank, self.features))
        return y + x @ down @ up


class Block(linen.Module):
    """Causal attention with rotary positions, then a feed-forward part."""

    heads: int
    rank: int

    @linen.compact
    def __call__(self, x: Array) -> Array:
        *batch, time, width = x.shape
        parts = linen.Dense(3 * width, use_bias=False)(linen.LayerNorm()(x))
        split = parts.reshape(*batch, time, 3, self.heads, width // self.heads)
        query, key, value = jnp.moveaxis(split, -3, 0)
        query, key = rotated(query), rotated(key)
        scores = jnp.einsum("...qhd,...khd->...hqk", query, key) * query.shape[-1] ** -0.5
        causal = jnp.broadcast_to(jnp.tril(jnp.ones((time, time), bool)), scores.shape)
        weights = jax.nn.softmax(jnp.where(causal, scores, -1e9))  # type: ignore[arg-type]
        attended = jnp.einsum("...hqk,...khd->...qhd", weights, value)
        x = x + linen.Dense(width, use_bias=False, name="out")(attended.reshape(x.shape))
        hidden = jax.nn.gelu(Dense(4 * width, self.rank, name="up")(linen.LayerNorm()(x)))
        return x + Dense(width, self.rank, name="down")(hidden)


class Decoder(linen.Module):
    """A decoder: bytes `[..., time]` to logits of the next byte `[..., time, 256]`.

    Attributes:
      blocks: the number of blocks.
      width: features of each byte.
      heads: attention heads.
      rank: the rank of the adapters beside the feed-forward layers; 0 for none.
      adapting: the number of last blocks that have adapters.
    """

    blocks: int
    width: int
    heads: int
    rank: int = 0
    adapting: int = 1

    @linen.compact
    def __call__(self, tokens: Array) -> Array:
        x = linen.Embed(BYTES, self.width, embedding_init=normal(0.02))(tokens)
        for i in range(self.blocks):
            last = i >= self.blocks - self.adapting
            x = Block(self.heads, self.rank if last else 0, name=f"block_{i}")(x)
        return linen.Dense(BYTES, use_bias=False, name="head")(linen.LayerNorm()(x))


def rotated(x: Array) -> Array:
    """Rotates pairs of features `[..., time, heads, size]` by angles that grow with the position.

    Products of two rotated vectors depend on the distance of their positions only. Su et al., 2021,
    https://arxiv.org/abs/2104.09864, section 3.2.2.
    """
    time, _, size = x.shape[-3:]
    speeds = 10_000.0 ** -(jnp.arange(size // 2) / (size // 2))
    angles = jnp.outer(jnp.arange(time), speeds)[:, None, :]
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = (f(angles).reshape((1,) * (x.ndim - 3) + angles.shape) for f in (jnp.cos, jnp.sin))
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
