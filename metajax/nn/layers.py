"""Flax layers that adapt well: task-batched convolution, stateless batch normalization."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen
from jax import lax
from jax.nn.initializers import Initializer

from metajax.base import Array
from metajax.nn.conv import Padding, conv


class Conv(linen.Module):
    """`metajax.nn.conv` as a layer, without bias.

    Attributes:
      features: output channels.
      kernel_size: `(height, width)` of the kernel.
      strides: step of the window.
      padding: `"SAME"`, `"VALID"` or `((top, bottom), (left, right))`.
      kernel_init: initializer of the kernel.
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: Padding = "SAME"
    kernel_init: Initializer = linen.initializers.xavier_uniform()

    @linen.compact
    def __call__(self, x: Array) -> Array:
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        return conv(x, kernel, strides=self.strides, padding=self.padding)


class BatchNorm(linen.Module):
    r"""Batch normalization by the batch's own statistics; there is no state.

    .. math:: y = \gamma \frac{x - \mathrm{mean}(x)}{\sqrt{\mathrm{var}(x) + \epsilon}} + \beta

    Mean and variance are over all axes but the last, in float32. A query set is thus normalized
    by itself: predictions are transductive.

    Attributes:
      use_scale: whether there is a gamma.
      use_bias: whether there is a beta.
      epsilon: added to the variance.

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      section 5.2; on transduction Nichol et al., 2018, section 6.1.
    """

    use_scale: bool = False
    use_bias: bool = True
    epsilon: float = 1e-3

    @linen.compact
    def __call__(self, x: Array) -> Array:
        axes = tuple(range(x.ndim - 1))
        values = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean = jnp.mean(values, axes, keepdims=True)
        centred = values - mean
        variance = jnp.mean(centred**2, axes, keepdims=True)
        factor = lax.rsqrt(variance + self.epsilon)
        if self.use_scale:
            factor *= self._parameter("scale", linen.initializers.ones, x)
        y = centred * factor
        if self.use_bias:
            y += self._parameter("bias", linen.initializers.zeros, x)
        return y.astype(x.dtype)

    def _parameter(self, name: str, init: Initializer, x: Array) -> Array:
        return self.param(name, init, x.shape[-1:]).reshape((1,) * (x.ndim - 1) + (-1,))
