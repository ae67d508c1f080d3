"""Deprecated: `metajax.data.omniglot`."""

from metajax.data import omniglot
from metajax.data.omniglot import Resample as Resample
from metajax.data.omniglot import Split as Split
from metajax.tasks import deprecated

Omniglot = deprecated.NamedSplits
load = deprecated.named_splits("omniglot", omniglot.load)
