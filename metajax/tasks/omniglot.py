"""Deprecated: `metajax.data.omniglot`."""

from metajax.data import omniglot
from metajax.tasks import deprecated

Omniglot = deprecated.NamedSplits
load = deprecated.named_splits("omniglot", omniglot.load)
