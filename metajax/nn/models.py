"""Network architectures, and predicates on their parameters. The last layer is called `head`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from metajax.base import Array, check_integer
from metajax.nn.blocks import ConvBlock, chain
from metajax.nn.conv import Elementwise, conv
from metajax.nn.layers import BatchNorm, Conv, Convolution, max_pool


class MLP(linen.Module):
    """A multi-layer perceptron over flattened inputs.

    Attributes:
      features: widths of the hidden layers.
      outputs: width of the head.
      activation: the elementwise function after every hidden layer.
      batch_norm: whether to normalize before the activation. The bias then belongs to the
        normalization.
      kernel_init: initializer of all kernels.
      dtype: compute type of the hidden layers, see `Conv`; the outputs are float32.

    A call takes `x`, `[examples, ...]`, and returns `[examples, outputs]`.

    Raises:
      ValueError: if a width is not positive.

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from metajax import nn
    >>> model = nn.MLP((32,), 2)
    >>> x = jnp.zeros((10, 4))
    >>> model.apply(model.init(jax.random.key(0), x), x).shape
    (10, 2)
    """

    features: Sequence[int]
    outputs: int
    activation: Elementwise = linen.relu
    batch_norm: bool = False
    kernel_init: Initializer = linen.initializers.xavier_uniform()
    dtype: DTypeLike | None = None

    @linen.compact
    def __call__(self, x: Array) -> Array:
        x = x.reshape(x.shape[0], -1)
        for features in _widths("MLP", self.features):
            x = linen.Dense(
                features,
                use_bias=not self.batch_norm,
                kernel_init=self.kernel_init,
                dtype=self.dtype,
            )(x)
            x = BatchNorm()(x) if self.batch_norm else x
            x = self.activation(x)
        return _head(self.outputs, self.kernel_init, x)


class ConvNet(linen.Module):
    """Blocks of a 3 x 3 convolution, batch norm and ReLU that halve the image, and a linear head.

    Convolutions at stride 2 halve the image, or 2 x 2 maximum pooling at the end of each block.

    The convolutions have no bias, because the normalization after them subtracts it. The authors'
    code has one with a gradient of zero: the function and its training are the same.

    Attributes:
      outputs: width of the head.
      features: channels of every convolution.
      depth: number of blocks.
      pool: `"stride"` for convolutions at stride 2, `"max"` for maximum pooling.
      pool_padding: `"VALID"` drops an odd last row or column when pooling, `"SAME"` keeps it.
      reduce: `"mean"` averages the last feature maps before the head, `"flatten"` flattens them.
      use_scale: whether the normalizations have a gamma beside their beta.
      head_init: initializer of the head's kernel.
      norm_steps: if positive, the number of gammas and betas of each normalization. The parameter
        `step`, a float that `metajax.count_steps` increases at every inner step, selects one.
      dtype: compute type of the convolutions, see `Conv`; statistics and logits are float32.
      convolution: the function that computes the convolutions, see `Conv`.

    A call takes images `[examples, height, width, channels]` and returns `[examples, outputs]`.

    Raises:
      ValueError: if `pool` or `reduce` is unknown, if a size is not positive, if the images become
        too small to be pooled, and as `conv` does.

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from metajax import nn
    >>> model = nn.ConvNet(5, features=8, depth=2, pool="max", reduce="flatten")
    >>> images = jnp.zeros((3, 14, 14, 1))
    >>> params = model.init(jax.random.key(0), images)
    >>> params["params"]["head"]["kernel"].shape
    (72, 5)

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      section 5.2.
    """

    outputs: int
    features: int = 64
    depth: int = 4
    pool: str = "stride"
    pool_padding: str = "VALID"
    reduce: str = "mean"
    use_scale: bool = False
    head_init: Initializer = linen.initializers.xavier_uniform()
    norm_steps: int = 0
    dtype: DTypeLike | None = None
    convolution: Convolution = conv

    @linen.compact
    def __call__(self, x: Array) -> Array:
        if self.pool not in ("stride", "max"):
            raise ValueError(f'ConvNet: pool must be "stride" or "max", got {self.pool!r}.')
        if self.reduce not in ("mean", "flatten"):
            raise ValueError(f'ConvNet: reduce must be "mean" or "flatten", got {self.reduce!r}.')
        stride = 2 if self.pool == "stride" else 1
        pool = functools.partial(max_pool, padding=self.pool_padding)
        step = None
        if self.norm_steps:
            step = self.param("step", linen.initializers.zeros, (), jnp.float32)
        blocks = [
            ConvBlock(
                Conv(
                    self.features,
                    kernel_size=(3, 3),
                    strides=(stride, stride),
                    use_bias=False,
                    dtype=self.dtype,
                    convolution=self.convolution,
                ),
                BatchNorm(use_scale=self.use_scale, num_steps=self.norm_steps),
                linen.relu,
                pool if self.pool == "max" else None,
            )
            for _ in range(check_integer("ConvNet: depth", self.depth, 0))
        ]
        x = chain(blocks, x, step)
        x = jnp.mean(x, axis=(1, 2)) if self.reduce == "mean" else x.reshape(x.shape[0], -1)
        return _head(self.outputs, self.head_init, x)


class ResNet(linen.Module):
    """Residual blocks of three 3 x 3 convolutions that halve the image, and a linear head.

    Batch norm by the batch's own statistics follows every convolution. The shortcut of a block is
    a normalized 1 x 1 convolution. The sum is activated and pooled by 2 x 2 maxima; the last
    feature maps are averaged.

    Attributes:
      outputs: width of the head.
      features: channels of each block.
      slope: slope of the leaky ReLU below zero.
      use_scale: whether the normalizations have a gamma beside their beta.
      dtype: compute type of the convolutions, see `Conv`; statistics and logits are float32.
      convolution: the function that computes the convolutions, see `Conv`.

    A call takes images `[examples, height, width, channels]` and returns `[examples, outputs]`.

    Raises:
      ValueError: if a size is not positive, if the images become too small to be pooled, and as
        `conv` does.

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from metajax import nn
    >>> model = nn.ResNet(5, features=(4, 8))
    >>> images = jnp.zeros((3, 12, 12, 3))
    >>> model.apply(model.init(jax.random.key(0), images), images).shape
    (3, 5)

    References:
      He et al., `Deep Residual Learning <https://arxiv.org/abs/1512.03385>`_, 2016; in this form
      Oreshkin et al., `TADAM <https://arxiv.org/abs/1805.10123>`_, 2018, section 4.
    """

    outputs: int
    features: Sequence[int] = (64, 128, 256, 512)
    slope: float = 0.1
    use_scale: bool = True
    dtype: DTypeLike | None = None
    convolution: Convolution = conv

    @linen.compact
    def __call__(self, x: Array) -> Array:
        def normalized_conv(features: int, size: int, x: Array) -> Array:
            x = Conv(
                features,
                kernel_size=(size, size),
                use_bias=False,
                dtype=self.dtype,
                convolution=self.convolution,
            )(x)
            return BatchNorm(use_scale=self.use_scale)(x)

        for features in _widths("ResNet", self.features):
            y = linen.leaky_relu(normalized_conv(features, 3, x), self.slope)
            y = linen.leaky_relu(normalized_conv(features, 3, y), self.slope)
            y = normalized_conv(features, 3, y) + normalized_conv(features, 1, x)
            x = max_pool(linen.leaky_relu(y, self.slope))
        return _head(self.outputs, linen.initializers.xavier_uniform(), jnp.mean(x, axis=(1, 2)))


def is_head(path: tuple[Any, ...]) -> bool:
    """Whether a parameter of a network of `metajax.nn` belongs to the head, its last linear layer.

    Args:
      path: the parameter's key path, as `jax.tree_util.tree_map_with_path` passes it.

    Raises:
      ValueError: if `path` is no key path.

    Example, ANIL, where the head alone adapts:

    >>> import metajax, optax
    >>> from metajax import nn
    >>> model = nn.omniglot_conv(ways=5)
    >>> loss = metajax.cross_entropy(model.apply)
    >>> learner = metajax.anil(
    ...     loss, optax.sgd(0.1), optax.adam(1e-3), num_steps=5, head=nn.is_head)

    References:
      Raghu et al., `Rapid Learning or Feature Reuse? <https://arxiv.org/abs/1909.09157>`_, 2020,
      section 4.
    """
    return "head" in _names("is_head", path)


def is_norm(path: tuple[Any, ...]) -> bool:
    """Whether a parameter of a network of `metajax.nn` is a gamma or beta of a `BatchNorm`.

    Arguments and errors as in `is_head`.

    Example, inner steps that leave gamma and beta alone:

    >>> import metajax, optax
    >>> from metajax import nn
    >>> optimizer = metajax.adapt_only(optax.sgd(0.1), lambda path: not nn.is_norm(path))
    """
    return any(name.startswith("BatchNorm") for name in _names("is_norm", path))


def is_step(path: tuple[Any, ...]) -> bool:
    """Whether a parameter is the inner step that a `ConvNet` with `norm_steps` counts.

    Arguments and errors as in `is_head`.

    Example, inner steps that count themselves:

    >>> import metajax, optax
    >>> from metajax import nn
    >>> optimizer = metajax.count_steps(optax.sgd(0.1), nn.is_step)
    """
    return _names("is_step", path)[-1:] == ["step"]


def _names(predicate: str, path: Any) -> list[str]:
    if not isinstance(path, tuple):
        raise ValueError(
            f"{predicate}: expected the key path of a parameter, a tuple as "
            f"jax.tree_util.tree_map_with_path passes it, got {path!r}."
        )
    return [jax.tree_util.keystr((key,), simple=True) for key in path]


def _widths(model: str, features: Any) -> Sequence[int]:
    if not isinstance(features, Sequence) or isinstance(features, str):
        raise ValueError(
            f"{model}: features must be one width per layer, such as (64, 64), got {features!r}."
        )
    return [check_integer(f"{model}: each of features", width) for width in features]


def _head(outputs: int, kernel_init: Initializer, x: Array) -> Array:
    """The last linear layer of every network, in the precision of its parameters."""
    check_integer("outputs", outputs)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return linen.Dense(outputs, kernel_init=kernel_init, dtype=dtype, name="head")(x)
