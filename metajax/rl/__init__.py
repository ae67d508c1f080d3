"""Meta-reinforcement learning: environments with tasks, policy-gradient adaptation, outer steps.

`maml_trpo`, `promp` and `reptile` learn what an `inner_loop` adapts. `from_gymnax` and `from_brax`
take an environment of yours; importing `metajax.rl` imports neither engine. The environments of the
papers do import one and need the extra `rl`: `metajax.rl.navigation` (gymnax) and
`metajax.rl.locomotion` (Brax).
"""

import warnings
from typing import Any

from metajax.rl.base import Distribution as Distribution
from metajax.rl.base import Env as Env
from metajax.rl.base import EnvStep as EnvStep
from metajax.rl.base import Policy as Policy
from metajax.rl.base import Recurrent as Recurrent
from metajax.rl.base import Tasks as Tasks
from metajax.rl.base import Trajectories as Trajectories
from metajax.rl.brax_env import from_brax as from_brax
from metajax.rl.gymnax_env import from_gymnax as from_gymnax
from metajax.rl.inner import Collected as Collected
from metajax.rl.inner import InnerLoop as InnerLoop
from metajax.rl.inner import collect as collect
from metajax.rl.inner import inner_loop as inner_loop
from metajax.rl.inner import policy_return as policy_return
from metajax.rl.inner import replay as replay
from metajax.rl.inner import sampler as sampler
from metajax.rl.objective import kl_curvature as kl_curvature
from metajax.rl.objective import loss_and_kl as loss_and_kl
from metajax.rl.policies import Categorical as Categorical
from metajax.rl.policies import CategoricalMLP as CategoricalMLP
from metajax.rl.policies import GaussianMLP as GaussianMLP
from metajax.rl.policies import Normal as Normal
from metajax.rl.policies import is_context as is_context
from metajax.rl.policies import with_context as with_context
from metajax.rl.policies import with_memory as with_memory
from metajax.rl.promp import promp as promp
from metajax.rl.reptile import reptile as reptile
from metajax.rl.rollout import discounted_sums as discounted_sums
from metajax.rl.rollout import mean_return as mean_return
from metajax.rl.rollout import observation_features as observation_features
from metajax.rl.rollout import rollout as rollout
from metajax.rl.rollout import standardized_advantages as standardized_advantages
from metajax.rl.rollout import time_features as time_features
from metajax.rl.surrogates import SURROGATES as SURROGATES
from metajax.rl.surrogates import dice as dice
from metajax.rl.surrogates import likelihood_ratio as likelihood_ratio
from metajax.rl.surrogates import log_likelihood as log_likelihood
from metajax.rl.trials import episode_returns as episode_returns
from metajax.rl.trials import trial_features as trial_features
from metajax.rl.trials import trials as trials
from metajax.rl.trpo import maml_trpo as maml_trpo
from metajax.rl.wrappers import oracle as oracle
from metajax.rl.wrappers import standardized as standardized

_RENAMED = {
    "adaptation": "inner_loop",
    "Adaptation": "InnerLoop",
    "trust_region": "maml_trpo",
    "clipped": "promp",
    "displaced": "reptile",
}


def __getattr__(name: str) -> Any:
    """The objects under their names of version 0.1, until the next release."""
    if name not in _RENAMED:
        raise AttributeError(f"module 'metajax.rl' has no attribute {name!r}")
    new = _RENAMED[name]
    warnings.warn(
        f"metajax.rl.{name} is now metajax.rl.{new}; the old name will be removed.",
        DeprecationWarning,
        stacklevel=2,
    )
    return globals()[new]
