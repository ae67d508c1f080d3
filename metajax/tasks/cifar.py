"""Deprecated: `metajax.data.cifar`."""

from metajax.data import cifar
from metajax.data.cifar import Split as Split
from metajax.tasks import deprecated

CIFAR = deprecated.NamedSplits
load = deprecated.named_splits("cifar", cifar.load)
