"""The networks of the papers. The last linear layer of each is called `head`."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from metajax.base import Array
from metajax.nn.conv import Elementwise, conv
from metajax.nn.layers import BatchNorm, Conv, Convolution, max_pool, moments


class MLP(linen.Module):
    """A multi-layer perceptron over flattened inputs.

    Attributes:
      features: units of the hidden layers.
      outputs: units of the head.
      activation: after every hidden layer.
      batch_norm: whether batch normalization comes before the activation; it has the bias then.
      kernel_init: initializer of all kernels.
      dtype: the compute type of the hidden layers, see `Conv`; the outputs are float32.

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
        for features in self.features:
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
    """3 x 3 convolutions that halve the image, each with batch norm and ReLU, and a linear head.

    Maximum pooling is between the normalization and the ReLU, with which it commutes.

    The convolutions have no bias, as the normalization after them subtracts any. The authors' code
    has one, whose gradient is zero: the function and its training are the same.

    Attributes:
      outputs: units of the head.
      features: channels of every convolution.
      depth: number of convolutions.
      pool: what halves the image, `"stride"` 2 or 2 x 2 `"max"` pooling at stride 1.
      pool_padding: `"VALID"` or `"SAME"`, what `max_pool` does with an odd last row or column.
      reduce: `"mean"` over the remaining positions before the head, or `"flatten"`.
      use_scale: whether the batch normalization has a gamma beside its beta.
      head_init: initializer of the head's kernel.
      norm_steps: if positive, the normalizations have as many gammas and betas, of which the
        parameter `step`, a float that `metajax.counting` increases with every inner step, picks.
      dtype: the compute type of the convolutions, see `Conv`; statistics and logits are float32.
      convolution: what computes them, see `Conv`.

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from metajax import nn
    >>> model = nn.ConvNet(5, features=8, depth=2, pool="max", reduce="flatten")
    >>> images = jnp.zeros((3, 14, 14, 1))
    >>> params = model.init(jax.random.key(0), images)
    >>> params["params"]["head"]["kernel"].shape
    (72, 5)
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
        strides = (2, 2) if self.pool == "stride" else (1, 1)
        step = None
        if self.norm_steps:
            step = self.param("step", linen.initializers.zeros, (), jnp.float32)
        pool = functools.partial(max_pool, padding=self.pool_padding)
        # Without a gamma, which may be negative, normalization keeps the order of its inputs: the
        # maximum may go first and leave it a quarter of the work.
        pool_first = self.pool == "max" and not self.use_scale
        activate: Elementwise | None = None
        for _ in range(self.depth):
            layer = Conv(
                self.features,
                strides=strides,
                use_bias=False,
                dtype=self.dtype,
                convolution=self.convolution,
            )
            if pool_first:
                x, population = layer(x, activate, lambda y: (pool(y), moments(y)))
            else:
                x = layer(x, activate)
                population = moments(x)
            norm = BatchNorm(use_scale=self.use_scale, num_steps=self.norm_steps)
            normalize = norm.by(population, step)
            if self.pool == "max" and self.use_scale:
                x, activate = pool(normalize(x)), linen.relu
            else:
                # Left to the next convolution, which keeps no result of it.
                activate = _composed(linen.relu, normalize)
        x = activate(x) if activate else x
        x = jnp.mean(x, axis=(1, 2)) if self.reduce == "mean" else x.reshape(x.shape[0], -1)
        return _head(self.outputs, self.head_init, x)


def _composed(last: Elementwise, first: Elementwise) -> Elementwise:
    return lambda x: last(first(x))


def _head(outputs: int, kernel_init: Initializer, x: Array) -> Array:
    """The last linear layer of every model, in the precision of its parameters."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return linen.Dense(outputs, kernel_init=kernel_init, dtype=dtype, name="head")(x)


class ResNet(linen.Module):
    """Residual blocks of three 3 x 3 convolutions, each block halving the image; a linear head.

    All convolutions are normalized by the batch's own statistics. The shortcut of a block is a
    1 x 1 convolution; 2 x 2 maximum pooling comes after the sum, the mean over positions last.

    Attributes:
      outputs: units of the head.
      features: channels of the blocks.
      slope: of the leaky ReLU below zero.
      use_scale: whether the batch normalization has a gamma beside its beta.
      dtype: the compute type of the convolutions, see `Conv`; statistics and logits are float32.
      convolution: what computes them, see `Conv`.

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
        def convolution(features: int, size: int, x: Array) -> Array:
            x = Conv(
                features,
                kernel_size=(size, size),
                use_bias=False,
                dtype=self.dtype,
                convolution=self.convolution,
            )(x)
            return BatchNorm(use_scale=self.use_scale)(x)

        for features in self.features:
            y = x
            for layer in range(3):
                y = convolution(features, 3, y)
                y = linen.leaky_relu(y, self.slope) if layer < 2 else y
            y = linen.leaky_relu(y + convolution(features, 1, x), self.slope)
            x = max_pool(y)
        return _head(self.outputs, linen.initializers.xavier_uniform(), jnp.mean(x, axis=(1, 2)))


def resnet12(ways: int, dtype: DTypeLike | None = None) -> ResNet:
    """Twelve convolutions in four residual blocks of 64 to 512 channels.

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from metajax import nn
    >>> model, images = nn.resnet12(5), jnp.zeros((2, 84, 84, 3))
    >>> params = jax.eval_shape(model.init, jax.random.key(0), images)
    >>> params["params"]["head"]["kernel"].shape
    (512, 5)
    """
    return ResNet(ways, dtype=dtype)


def conv_per_step(
    ways: int, *, features: int = 64, num_steps: int = 5, dtype: DTypeLike | None = None
) -> ConvNet:
    """Four convolutions with maximum pooling and a gamma and beta for every inner step.

    There is one more than steps, for the adapted parameters.

    References:
      Antoniou et al., `How to train your MAML <https://arxiv.org/abs/1810.09502>`_, 2019,
      sections 4 and 5; 64 channels for Omniglot, 48 for Mini-ImageNet in the authors' code.
    """
    return ConvNet(
        ways,
        features=features,
        pool="max",
        reduce="flatten",
        use_scale=True,
        norm_steps=num_steps + 1,
        dtype=dtype,
    )


def sinusoid_mlp() -> MLP:
    """1-40-40-1 with ReLU.

    The authors' code starts from a truncated normal of scale 0.01, close to the saddle at zero;
    that is `MLP((40, 40), 1, kernel_init=flax.linen.initializers.truncated_normal(0.01))`. Scaled
    to the width, as here, training is faster and five-shot adaptation does not diverge.

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from metajax import nn
    >>> model = nn.sinusoid_mlp()
    >>> params = model.init(jax.random.key(0), jnp.zeros((1, 1)))
    >>> model.apply(params, jnp.zeros((10, 1))).shape
    (10, 1)

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      section 5.1.
    """
    return MLP((40, 40), 1)


def sinusoid_mlp_nichol() -> MLP:
    """1-64-64-1 with tanh.

    References:
      Nichol et al., `On First-Order Meta-Learning Algorithms
      <https://arxiv.org/abs/1803.02999>`_, 2018, section 4; the activation is that of the
      authors' published example.
    """
    return MLP((64, 64), 1, activation=linen.tanh)


def omniglot_conv(ways: int, dtype: DTypeLike | None = None) -> ConvNet:
    """Four strided convolutions of 64 channels, the mean over positions, a head from N(0, 1).

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from metajax import nn
    >>> model = nn.omniglot_conv(ways=5)
    >>> images = jnp.zeros((25, 28, 28, 1))
    >>> model.apply(model.init(jax.random.key(0), images), images).shape
    (25, 5)

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      section 5.2; the mean and the head's initialization are those of the authors' code.
    """
    return ConvNet(ways, head_init=linen.initializers.normal(1.0), dtype=dtype)


def omniglot_conv_nichol(ways: int, dtype: DTypeLike | None = None) -> ConvNet:
    """The same convolutions, flattened to 256 features, with gamma and beta.

    References:
      Nichol et al., `On First-Order Meta-Learning Algorithms
      <https://arxiv.org/abs/1803.02999>`_, 2018, section 6.1 and the authors' code.
    """
    return ConvNet(ways, reduce="flatten", use_scale=True, dtype=dtype)


def mini_imagenet_conv(ways: int, dtype: DTypeLike | None = None) -> ConvNet:
    """Four convolutions of 32 channels with max pooling; 84 x 84 images end as 800 features.

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      section 5.2; padding and initialization are those of the authors' code.
    """
    return ConvNet(ways, features=32, pool="max", reduce="flatten", dtype=dtype)


def mini_imagenet_conv_nichol(ways: int, dtype: DTypeLike | None = None) -> ConvNet:
    """The same with gamma and beta, and odd sizes rounded up when pooled; 1152 features.

    References:
      Nichol et al., `On First-Order Meta-Learning Algorithms
      <https://arxiv.org/abs/1803.02999>`_, 2018, section 6.1 and the authors' code.
    """
    return ConvNet(
        ways,
        features=32,
        pool="max",
        pool_padding="SAME",
        reduce="flatten",
        use_scale=True,
        dtype=dtype,
    )


def omniglot_mlp(ways: int, dtype: DTypeLike | None = None) -> MLP:
    """The non-convolutional network 256-128-64-64, each layer with batch normalization and ReLU.

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      section 5.2.
    """
    return MLP((256, 128, 64, 64), ways, batch_norm=True, dtype=dtype)
