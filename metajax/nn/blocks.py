"""A convolutional block, and chains of blocks fused into fewer passes over memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from flax import linen

from metajax.base import Array
from metajax.nn.conv import Elementwise
from metajax.nn.layers import BatchNorm, Conv, moments


class ConvBlock(linen.Module):
    r"""Convolution, batch normalization, activation and pooling.

    .. math:: y = \mathrm{pool}(\mathrm{activation}(\mathrm{norm}(\mathrm{conv}(x))))

    Layers made inside another module keep the names that it gives them, `Conv_0` and `BatchNorm_0`.

    Attributes:
      conv: the convolution.
      norm: the normalization.
      activation: an elementwise function that does not decrease, so that it commutes with maxima.
      pool: maximum pooling such as `max_pool`, or `None`.

    A call takes images `[examples, height, width, channels]`, and the inner step if `norm` has
    `num_steps`.

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from flax import linen
    >>> from metajax import nn
    >>> block = nn.ConvBlock(nn.Conv(8), nn.BatchNorm(), linen.relu, nn.max_pool)
    >>> images = jnp.zeros((3, 14, 14, 1))
    >>> block.apply(block.init(jax.random.key(0), images), images).shape
    (3, 7, 7, 8)

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      section 5.2, after Vinyals et al., `Matching Networks <https://arxiv.org/abs/1606.04080>`_,
      2016.
    """

    conv: Conv
    norm: BatchNorm
    activation: Elementwise = linen.relu
    pool: Callable[[Array], Array] | None = None

    def __call__(self, x: Array, step: Array | None = None) -> Array:
        return chain([self], x, step)

    def fused(self, x: Pending, step: Array | None = None) -> Pending:
        """The block as part of a chain: it applies what is pending and leaves its own last layer.

        Normalization and activation are left to the next convolution, which applies them to a few
        examples at a time and stores no result. Without a gamma, which may be negative, they keep
        the order of pixels. Pooling then goes first and leaves them a quarter of the pixels; each
        example is pooled as soon as it is convolved, so that the full output is not stored either.
        """
        pool, activation = self.pool, self.activation
        if pool and not self.norm.use_scale:
            y, statistics = self.conv(x.images, x.function, lambda y: (pool(y), moments(y)))
        else:
            y = self.conv(x.images, x.function)
            statistics = moments(y)
        normalize = self.norm.normalizer(statistics, step)
        if pool and self.norm.use_scale:
            return Pending(pool(normalize(y)), activation)
        return Pending(y, lambda y: activation(normalize(y)))


class Pending(NamedTuple):
    """The images `function(images)`, not computed yet.

    Attributes:
      images: `[examples, height, width, channels]`.
      function: an elementwise function; `None` is the identity.
    """

    images: Array
    function: Elementwise | None = None


def chain(blocks: Sequence[ConvBlock], x: Array, step: Array | None = None) -> Array:
    """Applies the blocks one after the other, each fused with the next."""
    pending = Pending(x)
    for block in blocks:
        pending = block.fused(pending, step)
    return pending.function(pending.images) if pending.function else pending.images
