"""Distributions of tasks, from which meta-learners draw their training and test tasks."""

from metajax.tasks import audit as audit  # deprecated
from metajax.tasks import cifar as cifar  # deprecated
from metajax.tasks import few_shot as few_shot
from metajax.tasks import mini_imagenet as mini_imagenet  # deprecated
from metajax.tasks import omniglot as omniglot  # deprecated
from metajax.tasks.base import StreamedTasks as StreamedTasks
from metajax.tasks.base import TaskDistribution as TaskDistribution
from metajax.tasks.base import as_tasks as as_tasks
from metajax.tasks.base import meta_batch as meta_batch
from metajax.tasks.few_shot import FewShot as FewShot
from metajax.tasks.leaks import audit_episodes as audit_episodes
from metajax.tasks.sinusoid import Sinusoid as Sinusoid
from metajax.tasks.streamed import StreamedFewShot as StreamedFewShot
from metajax.tasks.streamed import few_shot_tasks as few_shot_tasks
from metajax.tasks.streamed import place as place  # deprecated
from metajax.tasks.varied import Varied as Varied
