"""Gradient-based meta-learning in JAX."""

import warnings as _warnings
from typing import Any as _Any

from metajax import data as data
from metajax import tasks as tasks
from metajax.algorithms import Options as Options
from metajax.algorithms import fomaml as fomaml
from metajax.algorithms import maml as maml
from metajax.algorithms import reptile as reptile
from metajax.base import Adapt as Adapt
from metajax.base import AdaptInfo as AdaptInfo
from metajax.base import Episode as Episode
from metajax.base import InnerState as InnerState
from metajax.base import LossFn as LossFn
from metajax.base import MetaLearner as MetaLearner
from metajax.base import MetaParams as MetaParams
from metajax.base import MetaState as MetaState
from metajax.base import Objective as Objective
from metajax.base import Stateful as Stateful
from metajax.batches import cycle as cycle
from metajax.batches import full_batch as full_batch
from metajax.batches import per_step as per_step
from metajax.batches import replacement as replacement
from metajax.checks import check_differentiable as check_differentiable
from metajax.checks import check_minimizer as check_minimizer
from metajax.checks import check_symmetric as check_symmetric
from metajax.evaluate import AtSteps as AtSteps
from metajax.evaluate import OfAdaptation as OfAdaptation
from metajax.evaluate import accuracy as accuracy
from metajax.evaluate import evaluate as evaluate
from metajax.evaluate import mse as mse
from metajax.family import anil as anil
from metajax.family import boil as boil
from metajax.family import imaml as imaml
from metajax.family import maml_plus_plus as maml_plus_plus
from metajax.family import meta_sgd as meta_sgd
from metajax.gradients import MetaGradient as MetaGradient
from metajax.gradients import first_order as first_order
from metajax.gradients import implicit as implicit
from metajax.gradients import mixed_mode as mixed_mode
from metajax.gradients import second_order as second_order
from metajax.heads import Head as Head
from metajax.heads import closed_form as closed_form
from metajax.heads import head_learner as head_learner
from metajax.heads import head_on as head_on
from metajax.heads import matching as matching
from metajax.heads import prototypes as prototypes
from metajax.heads import ridge as ridge
from metajax.heads import svm as svm
from metajax.inner import inner_loop as inner_loop
from metajax.inner import start_from as start_from
from metajax.learned import alfa as alfa
from metajax.learned import meta_curvature as meta_curvature
from metajax.learner import meta_learner as meta_learner
from metajax.losses import cross_entropy as cross_entropy
from metajax.losses import squared_error as squared_error
from metajax.objectives import displacement as displacement
from metajax.objectives import last_update as last_update
from metajax.objectives import multi_step_query_loss as multi_step_query_loss
from metajax.objectives import online_loss as online_loss
from metajax.objectives import query_loss as query_loss
from metajax.objectives import weighted_updates as weighted_updates
from metajax.optimizers import LearnedOptimizer as LearnedOptimizer
from metajax.optimizers import adapt_only as adapt_only
from metajax.optimizers import count_steps as count_steps
from metajax.optimizers import learned_per_step_sizes as learned_per_step_sizes
from metajax.optimizers import learned_step_sizes as learned_step_sizes
from metajax.optimizers import lookahead as lookahead
from metajax.optimizers import on_params as on_params
from metajax.parallel import over_tasks as over_tasks
from metajax.parallel import task_mesh as task_mesh

__version__ = "0.1.0"

_RENAMED = {"adapting": "adapt_only", "counting": "count_steps"}


def __getattr__(name: str) -> _Any:
    """The functions under their names of version 0.1, until the next release."""
    if name not in _RENAMED:
        raise AttributeError(f"module 'metajax' has no attribute {name!r}")
    new = _RENAMED[name]
    _warnings.warn(
        f"metajax.{name} is now metajax.{new}; the old name will be removed.",
        DeprecationWarning,
        stacklevel=2,
    )
    return globals()[new]
