"""The networks of the papers. The last linear layer of each is called `head`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import linen
from jax.nn.initializers import Initializer

from metajax.base import Array
from metajax.nn.layers import BatchNorm, Conv

Activation = Callable[[Array], Array]


class MLP(linen.Module):
    """A multi-layer perceptron over flattened inputs.

    Attributes:
      features: units of the hidden layers.
      outputs: units of the head.
      activation: after every hidden layer.
      batch_norm: whether batch normalization comes before the activation; it has the bias then.
      kernel_init: initializer of all kernels.
    """

    features: Sequence[int]
    outputs: int
    activation: Activation = linen.relu
    batch_norm: bool = False
    kernel_init: Initializer = linen.initializers.xavier_uniform()

    @linen.compact
    def __call__(self, x: Array) -> Array:
        x = x.reshape(x.shape[0], -1)
        for features in self.features:
            x = linen.Dense(features, use_bias=not self.batch_norm, kernel_init=self.kernel_init)(x)
            x = BatchNorm()(x) if self.batch_norm else x
            x = self.activation(x)
        return linen.Dense(self.outputs, kernel_init=self.kernel_init, name="head")(x)


class ConvNet(linen.Module):
    """Strided 3 x 3 convolutions, each with batch normalization and ReLU, and a linear head.

    The convolutions have no bias: the normalization after them would subtract it.

    Attributes:
      outputs: units of the head.
      features: channels of every convolution.
      depth: number of convolutions.
      reduce: `"mean"` over the remaining positions before the head, or `"flatten"`.
      use_scale: whether the batch normalization has a gamma beside its beta.
      head_init: initializer of the head's kernel.
    """

    outputs: int
    features: int = 64
    depth: int = 4
    reduce: str = "mean"
    use_scale: bool = False
    head_init: Initializer = linen.initializers.xavier_uniform()

    @linen.compact
    def __call__(self, x: Array) -> Array:
        if self.reduce not in ("mean", "flatten"):
            raise ValueError(f'ConvNet: reduce must be "mean" or "flatten", got {self.reduce!r}.')
        for _ in range(self.depth):
            x = Conv(self.features, strides=(2, 2))(x)
            x = linen.relu(BatchNorm(use_scale=self.use_scale)(x))
        x = jnp.mean(x, axis=(1, 2)) if self.reduce == "mean" else x.reshape(x.shape[0], -1)
        return linen.Dense(self.outputs, kernel_init=self.head_init, name="head")(x)


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


def omniglot_conv(ways: int) -> ConvNet:
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
    return ConvNet(ways, head_init=linen.initializers.normal(1.0))


def omniglot_conv_nichol(ways: int) -> ConvNet:
    """The same convolutions, flattened to 256 features, with gamma and beta.

    References:
      Nichol et al., `On First-Order Meta-Learning Algorithms
      <https://arxiv.org/abs/1803.02999>`_, 2018, section 6.1 and the authors' code.
    """
    return ConvNet(ways, reduce="flatten", use_scale=True)


def omniglot_mlp(ways: int) -> MLP:
    """The non-convolutional network 256-128-64-64, each layer with batch normalization and ReLU.

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      section 5.2.
    """
    return MLP((256, 128, 64, 64), ways, batch_norm=True)
