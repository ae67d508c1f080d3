"""Gradient-based meta-learning in JAX."""

from metajax import tasks as tasks
from metajax.algorithms import anil as anil
from metajax.algorithms import boil as boil
from metajax.algorithms import fomaml as fomaml
from metajax.algorithms import imaml as imaml
from metajax.algorithms import maml as maml
from metajax.algorithms import maml_plus_plus as maml_plus_plus
from metajax.algorithms import meta_sgd as meta_sgd
from metajax.algorithms import reptile as reptile
from metajax.base import Adapt as Adapt
from metajax.base import AdaptInfo as AdaptInfo
from metajax.base import Episode as Episode
from metajax.base import LossFn as LossFn
from metajax.base import MetaLearner as MetaLearner
from metajax.base import MetaParams as MetaParams
from metajax.base import MetaState as MetaState
from metajax.base import Objective as Objective
from metajax.batches import cycle as cycle
from metajax.batches import full_batch as full_batch
from metajax.batches import per_step as per_step
from metajax.batches import replacement as replacement
from metajax.evaluate import AtSteps as AtSteps
from metajax.evaluate import accuracy as accuracy
from metajax.evaluate import evaluate as evaluate
from metajax.evaluate import mse as mse
from metajax.gradients import MetaGradient as MetaGradient
from metajax.gradients import first_order as first_order
from metajax.gradients import implicit as implicit
from metajax.gradients import mixed_mode as mixed_mode
from metajax.gradients import second_order as second_order
from metajax.inner import inner_loop as inner_loop
from metajax.learner import meta_learner as meta_learner
from metajax.objectives import displacement as displacement
from metajax.objectives import last_update as last_update
from metajax.objectives import multi_step_query_loss as multi_step_query_loss
from metajax.objectives import query_loss as query_loss
from metajax.objectives import weighted_updates as weighted_updates
from metajax.optimizers import LearnedOptimizer as LearnedOptimizer
from metajax.optimizers import adapting as adapting
from metajax.optimizers import counting as counting
from metajax.optimizers import learned_per_step_sizes as learned_per_step_sizes
from metajax.optimizers import learned_step_sizes as learned_step_sizes
from metajax.parallel import over_tasks as over_tasks
from metajax.parallel import task_mesh as task_mesh

__version__ = "0.1.0"
