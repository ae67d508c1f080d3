"""The networks of the papers, in the sizes of their experiments.

A network for images takes the number of classes, `ways`, and may compute its hidden layers in
another `dtype`, see `Conv`.
"""

from __future__ import annotations

from flax import linen
from jax.typing import DTypeLike

from metajax.nn.models import MLP, ConvNet, ResNet


def resnet12(ways: int, dtype: DTypeLike | None = None) -> ResNet:
    """ResNet-12: four residual blocks of three convolutions, with 64, 128, 256 and 512 channels.

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from metajax import nn
    >>> model, images = nn.resnet12(5), jnp.zeros((2, 84, 84, 3))
    >>> params = jax.eval_shape(model.init, jax.random.key(0), images)
    >>> params["params"]["head"]["kernel"].shape
    (512, 5)

    References:
      Oreshkin et al., `TADAM <https://arxiv.org/abs/1805.10123>`_, 2018, section 4.
    """
    return ResNet(ways, dtype=dtype)


def conv_per_step(
    ways: int, *, features: int = 64, num_steps: int = 5, dtype: DTypeLike | None = None
) -> ConvNet:
    """Four convolutions with maximum pooling, and a gamma and beta for every inner step.

    The adapted parameters have a gamma and beta of their own: there are `num_steps + 1` rows.

    Args:
      ways: number of classes.
      features: channels of every convolution.
      num_steps: number of inner steps.
      dtype: the compute type.

    Example, where `metajax.count_steps` moves the parameter `step` on:

    >>> import metajax, optax
    >>> from metajax import nn
    >>> model = nn.conv_per_step(ways=5, num_steps=3)
    >>> learner = metajax.maml(
    ...     metajax.cross_entropy(model.apply), metajax.count_steps(optax.sgd(0.1), nn.is_step),
    ...     optax.adam(1e-3), num_steps=3)

    References:
      Antoniou et al., `How to train your MAML <https://arxiv.org/abs/1810.09502>`_, 2019,
      sections 4 and 5. The authors' code has 64 channels for Omniglot and 48 for Mini-ImageNet.
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
    """The sinusoid network with layers of 1, 40, 40 and 1 units and ReLU.

    The kernels start with the variance of Xavier initialization. Training is then faster than from
    the authors' truncated normal of scale 0.01, close to the saddle at zero, and five-shot
    adaptation does not diverge. The authors' start is
    `MLP((40, 40), 1, kernel_init=flax.linen.initializers.truncated_normal(0.01))`.

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
    """The sinusoid network with layers of 1, 64, 64 and 1 units and tanh.

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from metajax import nn
    >>> model = nn.sinusoid_mlp_nichol()
    >>> params = model.init(jax.random.key(0), jnp.zeros((1, 1)))
    >>> model.apply(params, jnp.zeros((10, 1))).shape
    (10, 1)

    References:
      Nichol et al., `On First-Order Meta-Learning Algorithms
      <https://arxiv.org/abs/1803.02999>`_, 2018, section 4. The activation follows the authors'
      published example.
    """
    return MLP((64, 64), 1, activation=linen.tanh)


def omniglot_conv(ways: int, dtype: DTypeLike | None = None) -> ConvNet:
    """Four strided convolutions of 64 channels, averaged feature maps, a head drawn from N(0, 1).

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from metajax import nn
    >>> model = nn.omniglot_conv(ways=5)
    >>> images = jnp.zeros((25, 28, 28, 1))
    >>> model.apply(model.init(jax.random.key(0), images), images).shape
    (25, 5)

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      section 5.2. The average and the initialization of the head follow the authors' code.
    """
    return ConvNet(ways, head_init=linen.initializers.normal(1.0), dtype=dtype)


def omniglot_conv_nichol(ways: int, dtype: DTypeLike | None = None) -> ConvNet:
    """Four strided convolutions of 64 channels with gamma and beta, flattened to 256 features.

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from metajax import nn
    >>> model, images = nn.omniglot_conv_nichol(ways=5), jnp.zeros((25, 28, 28, 1))
    >>> params = jax.eval_shape(model.init, jax.random.key(0), images)
    >>> params["params"]["head"]["kernel"].shape
    (256, 5)

    References:
      Nichol et al., `On First-Order Meta-Learning Algorithms
      <https://arxiv.org/abs/1803.02999>`_, 2018, section 6.1 and the authors' code.
    """
    return ConvNet(ways, reduce="flatten", use_scale=True, dtype=dtype)


def mini_imagenet_conv(ways: int, dtype: DTypeLike | None = None) -> ConvNet:
    """Four convolutions of 32 channels with maximum pooling; 84 x 84 images become 800 features.

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from metajax import nn
    >>> model, images = nn.mini_imagenet_conv(ways=5), jnp.zeros((5, 84, 84, 3))
    >>> params = jax.eval_shape(model.init, jax.random.key(0), images)
    >>> params["params"]["head"]["kernel"].shape
    (800, 5)

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      section 5.2. Padding and initialization follow the authors' code.
    """
    return ConvNet(ways, features=32, pool="max", reduce="flatten", dtype=dtype)


def mini_imagenet_conv_nichol(ways: int, dtype: DTypeLike | None = None) -> ConvNet:
    """Four convolutions of 32 channels with gamma, beta and maximum pooling that rounds sizes up.

    84 x 84 images become 1152 features.

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from metajax import nn
    >>> model, images = nn.mini_imagenet_conv_nichol(ways=5), jnp.zeros((5, 84, 84, 3))
    >>> params = jax.eval_shape(model.init, jax.random.key(0), images)
    >>> params["params"]["head"]["kernel"].shape
    (1152, 5)

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
    """The network without convolutions: layers of 256, 128, 64 and 64, batch norm and ReLU.

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from metajax import nn
    >>> model, images = nn.omniglot_mlp(ways=5), jnp.zeros((25, 28, 28, 1))
    >>> params = jax.eval_shape(model.init, jax.random.key(0), images)
    >>> params["params"]["head"]["kernel"].shape
    (64, 5)

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      section 5.2.
    """
    return MLP((256, 128, 64, 64), ways, batch_norm=True, dtype=dtype)
