"""2D navigation, the simplest reinforcement-learning problem of the MAML paper."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from metajax.base import Array, Key
from metajax.rl.base import Env
from metajax.rl.gymnax_env import from_gymnax

try:
    from gymnax.environments import environment, spaces
except ImportError as error:
    raise ImportError(f'navigation needs gymnax ({error}): pip install "metajax[rl]"') from error

REWARDS = ("distance", "squared")
ACTION_SCALE = 0.1
GOAL_SIZE = 0.01


@struct.dataclass
class NavigationState(environment.EnvState):
    position: Array


@struct.dataclass
class NavigationParams(environment.EnvParams):
    goal: Array = struct.field(default_factory=lambda: jnp.zeros(2))
    max_steps_in_episode: int = 100


class Navigation(environment.Environment[NavigationState, NavigationParams]):
    """A gymnax environment: a point in the plane moves towards a goal that it does not observe.

    The point starts at the origin and observes its position. It moves by 0.1 times the action, at
    most 0.1 per coordinate. A trajectory ends when both coordinates are within 0.01 of the goal.

    Args:
      reward: `"distance"`, minus the distance to the goal after the move, the reward behind
        the published returns; or `"squared"`, minus the squared distance, the
        reward in the paper's text.

    Raises:
      ValueError: for another reward.

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from metajax.rl.navigation import Navigation
    >>> point = Navigation()
    >>> params = point.default_params.replace(goal=jnp.array([0.3, 0.4]))
    >>> rng = jax.random.key(0)
    >>> _, state = point.reset_env(rng, params)
    >>> _, _, reward, done, _ = point.step_env(rng, state, jnp.zeros(2), params)
    >>> float(reward), bool(done)
    (-0.5, False)

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      section 5.3.
    """

    def __init__(self, reward: str = "distance"):
        if reward not in REWARDS:
            raise ValueError(f"Navigation: reward must be one of {REWARDS}, got {reward!r}.")
        super().__init__()
        self.reward = reward

    @property
    def default_params(self) -> NavigationParams:
        return NavigationParams()

    def reset_env(self, key, params):
        state = NavigationState(time=0, position=jnp.zeros(2))
        return state.position, state

    def step_env(self, key, state, action, params):
        move = jnp.clip(ACTION_SCALE * action, -ACTION_SCALE, ACTION_SCALE)
        state = NavigationState(time=state.time + 1, position=state.position + move)
        square = jnp.sum((state.position - params.goal) ** 2)
        reward = -(square if self.reward == "squared" else jnp.sqrt(square))
        return state.position, state, reward, self.is_terminated(state, params), {}

    def is_terminated(self, state, params):
        return (jnp.abs(state.position - params.goal) < GOAL_SIZE).all()

    def get_obs(self, state, params=None, key=None):
        return state.position

    @property
    def name(self) -> str:
        return "Navigation-metajax"

    @property
    def num_actions(self) -> int:
        return 2

    def action_space(self, params):
        return spaces.Box(-1.0, 1.0, (2,))

    def observation_space(self, params):
        return spaces.Box(-jnp.inf, jnp.inf, (2,))


def navigation(reward: str = "distance") -> Env:
    """2D navigation with goals drawn uniformly from the square [-0.5, 0.5]^2.

    A task is `{"goal": [2]}`.

    Args:
      reward: `"distance"` or `"squared"`, see `Navigation`.

    Raises:
      ValueError: for another reward.

    Example:

    >>> import jax
    >>> from metajax.rl.navigation import navigation
    >>> env = navigation()
    >>> env.sample_tasks(jax.random.key(0), 5)["goal"].shape
    (5, 2)
    """

    def sample_tasks(rng: Key, n: int) -> dict[str, Array]:
        return {"goal": jax.random.uniform(rng, (n, 2), minval=-0.5, maxval=0.5)}

    return from_gymnax(Navigation(reward), sample_tasks)
