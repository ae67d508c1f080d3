"""Images by class: readers of data sets, what protocols do to them, and the search for leaks."""

from metajax.data import cifar as cifar
from metajax.data import mini_imagenet as mini_imagenet
from metajax.data import omniglot as omniglot
from metajax.data.images import Images as Images
from metajax.data.images import Splits as Splits
from metajax.data.leaks import audit as audit
from metajax.data.leaks import changed_classes as changed_classes
from metajax.data.sets import DATA_SETS as DATA_SETS
from metajax.data.sets import DataSet as DataSet
from metajax.data.sets import load as load
from metajax.data.sources import from_arrays as from_arrays
from metajax.data.sources import from_folder as from_folder
from metajax.data.sources import from_tfds as from_tfds
