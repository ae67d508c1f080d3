"""The networks of the papers as Flax modules, and the layers they consist of."""

from metajax.nn.blocks import ConvBlock as ConvBlock
from metajax.nn.conv import conv as conv
from metajax.nn.layers import BatchNorm as BatchNorm
from metajax.nn.layers import Conv as Conv
from metajax.nn.layers import Moments as Moments
from metajax.nn.layers import max_pool as max_pool
from metajax.nn.layers import moments as moments
from metajax.nn.models import MLP as MLP
from metajax.nn.models import ConvNet as ConvNet
from metajax.nn.models import ResNet as ResNet
from metajax.nn.models import is_head as is_head
from metajax.nn.models import is_norm as is_norm
from metajax.nn.models import is_step as is_step
from metajax.nn.papers import conv_per_step as conv_per_step
from metajax.nn.papers import mini_imagenet_conv as mini_imagenet_conv
from metajax.nn.papers import mini_imagenet_conv_nichol as mini_imagenet_conv_nichol
from metajax.nn.papers import omniglot_conv as omniglot_conv
from metajax.nn.papers import omniglot_conv_nichol as omniglot_conv_nichol
from metajax.nn.papers import omniglot_mlp as omniglot_mlp
from metajax.nn.papers import resnet12 as resnet12
from metajax.nn.papers import sinusoid_mlp as sinusoid_mlp
from metajax.nn.papers import sinusoid_mlp_nichol as sinusoid_mlp_nichol
