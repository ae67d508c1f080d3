"""Deprecated: `metajax.data.mini_imagenet`."""

from metajax.data import mini_imagenet
from metajax.tasks import deprecated

MiniImageNet = deprecated.NamedSplits
load = deprecated.named_splits("mini_imagenet", mini_imagenet.load)
words = deprecated.moved(
    "metajax.tasks.mini_imagenet.words", "metajax.data.mini_imagenet.words", mini_imagenet.words
)
