"""Meta-reinforcement learning: environments with tasks, rollouts, surrogates, outer steps.

`from_gymnax` and `from_brax` take an environment of yours; none of this imports an engine. The
papers' tasks do, and need the extra `rl`: `metajax.rl.navigation` (gymnax) and
`metajax.rl.locomotion` (Brax).
"""

from metajax.rl.adaptation import Adaptation as Adaptation
from metajax.rl.adaptation import Collected as Collected
from metajax.rl.adaptation import adaptation as adaptation
from metajax.rl.adaptation import collect as collect
from metajax.rl.adaptation import policy_return as policy_return
from metajax.rl.adaptation import replay as replay
from metajax.rl.adaptation import sampler as sampler
from metajax.rl.base import Distribution as Distribution
from metajax.rl.base import Env as Env
from metajax.rl.base import EnvStep as EnvStep
from metajax.rl.base import Policy as Policy
from metajax.rl.base import Tasks as Tasks
from metajax.rl.base import Trajectories as Trajectories
from metajax.rl.brax_env import from_brax as from_brax
from metajax.rl.gymnax_env import from_gymnax as from_gymnax
from metajax.rl.objective import kl_curvature as kl_curvature
from metajax.rl.objective import loss_and_kl as loss_and_kl
from metajax.rl.outer import clipped as clipped
from metajax.rl.outer import displaced as displaced
from metajax.rl.outer import trust_region as trust_region
from metajax.rl.policies import Categorical as Categorical
from metajax.rl.policies import GaussianMLP as GaussianMLP
from metajax.rl.policies import Normal as Normal
from metajax.rl.policies import is_context as is_context
from metajax.rl.policies import with_context as with_context
from metajax.rl.rollout import discounted_sums as discounted_sums
from metajax.rl.rollout import mean_return as mean_return
from metajax.rl.rollout import rollout as rollout
from metajax.rl.rollout import standardized_advantages as standardized_advantages
from metajax.rl.surrogates import SURROGATES as SURROGATES
from metajax.rl.surrogates import dice as dice
from metajax.rl.surrogates import likelihood_ratio as likelihood_ratio
from metajax.rl.surrogates import log_likelihood as log_likelihood
from metajax.rl.wrappers import oracle as oracle
from metajax.rl.wrappers import standardized as standardized
