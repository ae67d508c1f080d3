"""Deprecated: `metajax.data.from_arrays`, `from_folder` and `from_tfds`."""

from metajax.data import sources
from metajax.tasks import deprecated
from metajax.tasks.deprecated import ImageClasses as ImageClasses

from_arrays = deprecated.image_classes("from_arrays", sources.from_arrays)
from_folder = deprecated.image_classes("from_folder", sources.from_folder)
from_tfds = deprecated.image_classes("from_tfds", sources.from_tfds)
