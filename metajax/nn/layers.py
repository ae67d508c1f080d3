"""Flax layers for adaptation: task-batched convolution, stateless batch norm, max pooling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen
from jax import lax
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from metajax.base import Array, check_integer
from metajax.nn.conv import Elementwise, Padding, PerExample, check_pair, conv

Convolution = Callable[..., Array]


class Conv(linen.Module):
    """`metajax.nn.conv` as a layer.

    Attributes:
      features: output channels.
      kernel_size: `(height, width)` of the kernel.
      strides: vertical and horizontal step of the window.
      padding: `"SAME"`, `"VALID"` or `((top, bottom), (left, right))`.
      use_bias: whether to add a bias, initially zero. Before a `BatchNorm` it has no effect.
      kernel_init: initializer of the kernel.
      dtype: compute type of images and kernel, such as `jnp.bfloat16`; by default their own types.
        Parameters stay float32, and products accumulate in float32.
      convolution: the function that computes the layer: `conv` or one with the same arguments, such
        as `functools.partial(conv, method="native")`.

    A call takes images `[examples, height, width, in_channels]` and the optional functions `before`
    and `after` of `conv`.

    Raises:
      ValueError: if `features` or `kernel_size` is not positive, and as `conv` does.

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from metajax import nn
    >>> layer = nn.Conv(64, strides=(2, 2))
    >>> images = jnp.zeros((5, 28, 28, 1))
    >>> layer.apply(layer.init(jax.random.key(0), images), images).shape
    (5, 14, 14, 64)
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: Padding = "SAME"
    use_bias: bool = True
    kernel_init: Initializer = linen.initializers.xavier_uniform()
    dtype: DTypeLike | None = None
    convolution: Convolution = conv

    @linen.compact
    def __call__(
        self, x: Array, before: Elementwise | None = None, after: PerExample | None = None
    ) -> Any:
        check_integer("Conv: features", self.features)
        check_pair("Conv: kernel_size", self.kernel_size)
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = _channels(self, "bias", linen.initializers.zeros, kernel) if self.use_bias else None
        x, kernel = linen.dtypes.promote_dtype(x, kernel, dtype=self.dtype)

        def finish(y: Array) -> Any:
            y = y if bias is None else y + bias.astype(y.dtype)
            return after(y) if after else y

        return self.convolution(
            x, kernel, strides=self.strides, padding=self.padding, before=before, after=finish
        )


class Moments(NamedTuple):
    """Mean and variance of every channel of each example, in float32 or wider.

    Attributes:
      mean: `[examples, 1, ..., channels]`.
      variance: of the same shape.
    """

    mean: Array
    variance: Array


def moments(x: Array) -> Moments:
    r"""Mean and variance of each example over all axes but the first and the last.

    .. math::
      \mu_{nc} = \frac{1}{|P|} \sum_{p \in P} x_{npc}, \qquad
      \sigma^2_{nc} = \frac{1}{|P|} \sum_{p \in P} (x_{npc} - \mu_{nc})^2

    Args:
      x: `[examples, ..., channels]`.

    Raises:
      ValueError: if `x` has fewer than two axes.

    Example:

    >>> import jax.numpy as jnp
    >>> from metajax import nn
    >>> nn.moments(jnp.asarray([[[1.0], [3.0]], [[2.0], [2.0]]])).variance.ravel().tolist()
    [1.0, 0.0]
    """
    if x.ndim < 2:
        raise ValueError(f"moments: expected [examples, ..., channels], got shape {x.shape}.")
    axes = tuple(range(1, x.ndim - 1))
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # Deviations from a constant near the values take one pass over memory, and their squares do not
    # cancel. No derivative of mean or variance depends on the constant.
    near = lax.stop_gradient(x[(slice(None), *(slice(1),) * len(axes))])
    away = jnp.mean(x - near, axes, keepdims=True)
    return Moments(near + away, jnp.mean((x - near) ** 2, axes, keepdims=True) - away**2)


class BatchNorm(linen.Module):
    r"""Batch normalization by the batch's own statistics, without running averages.

    .. math:: y = \gamma \frac{x - \mathrm{mean}(x)}{\sqrt{\mathrm{var}(x) + \epsilon}} + \beta

    Mean and variance run over all axes but the last, in float32. A query set is normalized by its
    own statistics, so that predictions are transductive: each depends on the other queries.

    Attributes:
      use_scale: whether to multiply by gamma.
      use_bias: whether to add beta.
      epsilon: added to the variance.
      num_steps: if positive, the number of gammas and betas, `[num_steps, channels]`. The argument
        `step` of a call selects a row; steps beyond the last row select the last.

    A call takes `x`, `[..., channels]`, and the inner step, a scalar, if `num_steps` is positive.

    Raises:
      ValueError: if `x` is not floating point or has fewer than two axes, or if a step is passed
        without `num_steps` or the other way round.

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from metajax import nn
    >>> layer = nn.BatchNorm(epsilon=0.0)
    >>> x = jnp.asarray([[1.0], [3.0]])
    >>> layer.apply(layer.init(jax.random.key(0), x), x).tolist()
    [[-1.0], [1.0]]

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      section 5.2. On transduction: Nichol et al., `On First-Order Meta-Learning Algorithms
      <https://arxiv.org/abs/1803.02999>`_, 2018, section 6.1. Gamma and beta per step: Antoniou et
      al., `How to train your MAML <https://arxiv.org/abs/1810.09502>`_, 2019, section 4.
    """

    use_scale: bool = False
    use_bias: bool = True
    epsilon: float = 1e-3
    num_steps: int = 0

    def __call__(self, x: Array, step: Array | None = None) -> Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"BatchNorm: expected floating-point inputs, got {x.dtype}; convert them "
                "first, for instance by x / 255."
            )
        return self.normalizer(moments(x), step)(x)

    @linen.compact
    def normalizer(self, statistics: Moments, step: Array | None = None) -> Elementwise:
        """The normalization by given statistics, as a function of the images.

        `norm.normalizer(moments(x))(y)` normalizes `y` by the statistics of `x`.
        """
        check_integer("BatchNorm: num_steps", self.num_steps, 0)
        if self.num_steps and step is None:
            raise ValueError(
                f"BatchNorm: num_steps={self.num_steps} needs the inner step of each call: "
                "norm(x, step)."
            )
        if step is not None and not self.num_steps:
            raise ValueError(
                "BatchNorm: a call with a step needs num_steps, the number of gammas and betas."
            )
        mean = jnp.mean(statistics.mean, axis=0, keepdims=True)
        between = jnp.mean((statistics.mean - mean) ** 2, axis=0, keepdims=True)
        variance = jnp.mean(statistics.variance, axis=0, keepdims=True) + between
        factor = lax.rsqrt(variance + self.epsilon)
        if self.use_scale:
            factor *= self._channels("scale", linen.initializers.ones, mean, step)
        shift = -mean * factor
        if self.use_bias:
            shift += self._channels("bias", linen.initializers.zeros, mean, step)

        def normalize(x: Array) -> Array:
            # One multiplication and one addition per number. Subtracting the mean first would take
            # another pass over memory.
            return (x.astype(factor.dtype) * factor + shift).astype(x.dtype)

        return normalize

    def _channels(self, name: str, init: Initializer, x: Array, step: Array | None) -> Array:
        if step is None:
            return _channels(self, name, init, x)
        rows = self.param(name, init, (self.num_steps, x.shape[-1]), jnp.float32)
        row = rows[jnp.clip(step.astype(jnp.int32), 0, self.num_steps - 1)]
        return row.reshape((1,) * (x.ndim - 1) + (-1,))


def max_pool(x: Array, *, padding: str = "VALID") -> Array:
    r"""Maximum pooling of 2 x 2 pixels, channels last.

    .. math:: y_{nhwc} = \max_{i, j \in \{0, 1\}} x_{n,\, 2h+i,\, 2w+j,\, c}

    The derivative is a select, faster than the select-and-scatter of `jax.lax.reduce_window`. There
    are derivatives of every order, in forward and reverse mode. Among equal pixels the first in
    reading order receives the gradient, as with `reduce_window`.

    Args:
      x: `[examples, height, width, channels]`, floating point.
      padding: `"VALID"` drops an odd last row or column, `"SAME"` pools it by itself.

    Returns:
      `[examples, out_height, out_width, channels]`, half the size, rounded down with `"VALID"` and
      up with `"SAME"`.

    Raises:
      ValueError: if `x` does not have four axes or is not floating point, if the padding is
        unknown, or if `"VALID"` would leave no pixel.

    Example:

    >>> import jax.numpy as jnp
    >>> from metajax import nn
    >>> nn.max_pool(jnp.arange(9.0).reshape(1, 3, 3, 1), padding="SAME")[0, :, :, 0].tolist()
    [[4.0, 5.0], [7.0, 8.0]]
    """
    if x.ndim != 4:
        raise ValueError(
            f"max_pool: expected images [examples, height, width, channels], got shape {x.shape}."
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"max_pool: expected floating-point images, got {x.dtype}; convert them first, for "
            "instance by x / 255."
        )
    if padding not in ("SAME", "VALID"):
        raise ValueError(f'max_pool: padding must be "SAME" or "VALID", got {padding!r}.')
    examples, height, width, channels = x.shape
    if padding == "VALID" and min(height, width) < 2:
        raise ValueError(
            f"max_pool: images of {height} x {width} are smaller than the 2 x 2 window; use "
            'padding="SAME" or fewer layers.'
        )
    # Both sizes become even; a negative margin crops.
    change = 1 if padding == "SAME" else -1
    margins = [(0, 0, 0), (0, height % 2 * change, 0), (0, width % 2 * change, 0), (0, 0, 0)]
    even = lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), margins)
    out_height, out_width = even.shape[1] // 2, even.shape[2] // 2
    return _largest(even.reshape(examples, out_height, 2, out_width, 2, channels))


@jax.custom_jvp
def _largest(windows: Array) -> Array:
    """The maximum of `[examples, height, 2, width, 2, channels]` over both axes of size 2."""
    rows = jnp.maximum(windows[:, :, 0], windows[:, :, 1])
    return jnp.maximum(rows[:, :, :, 0], rows[:, :, :, 1])


@_largest.defjvp
def _largest_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (windows,), (tangent,) = primals, tangents
    a, b, c, d = (windows[:, :, i, :, j] for i in (0, 1) for j in (0, 1))
    top, bottom = jnp.maximum(a, b), jnp.maximum(c, d)
    first = jnp.where(top >= bottom, jnp.where(a >= b, 0, 1), jnp.where(c >= d, 2, 3))
    # Slices of the tangent would transpose to paddings, each of them a pass over memory.
    position = jnp.arange(4, dtype=jnp.int8).reshape(1, 1, 2, 1, 2, 1)
    chosen = jnp.expand_dims(first.astype(jnp.int8), (2, 4)) == position
    return jnp.maximum(top, bottom), jnp.sum(jnp.where(chosen, tangent, 0), axis=(2, 4))


def _channels(module: linen.Module, name: str, init: Initializer, x: Array) -> Array:
    """A parameter `[channels]`, shaped to broadcast against `x`."""
    return module.param(name, init, x.shape[-1:], jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
