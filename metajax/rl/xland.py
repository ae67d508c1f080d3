"""XLand-MiniGrid: rooms with objects and rules of their own in each task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax.base import Array, Key, check_function, check_integer, describe
from metajax.rl.base import Env, EnvStep, Task

try:
    import xminigrid
    from xminigrid.core.constants import NUM_COLORS, NUM_TILES, Colors, Tiles
    from xminigrid.core.goals import AgentHoldGoal
    from xminigrid.core.rules import EmptyRule
    from xminigrid.types import RuleSet
except ImportError as error:
    raise ImportError(
        f'XLand-MiniGrid needs xminigrid ({error}): pip install "metajax[xland]"'
    ) from error

SHAPES = (Tiles.BALL, Tiles.SQUARE, Tiles.PYRAMID, Tiles.HEX, Tiles.STAR)
COLOURS = (Colors.RED, Colors.GREEN, Colors.BLUE, Colors.PURPLE, Colors.YELLOW)


def from_xland(
    environment: Any, params: Any, sample_tasks: Callable[[Key, int], dict[str, Array]]
) -> Env:
    """Turns an environment of XLand-MiniGrid into an `Env`.

    A task is a rule set in XLand's own codes (uint8), `{"goal": [5], "rules": [rules, 7],
    "init_tiles": [objects, 2]}`. The observation holds a one-hot vector of the tile and one of the
    colour of each cell in view. Trajectories end when the goal is reached, at the latest after
    `params.max_steps`; XLand's reward falls from 1 to .1 with the steps that the goal took.

    Args:
      environment: as `xminigrid.make` returns it first, one of those named `XLand-MiniGrid-...`.
      params: as `xminigrid.make` returns them, with any rule set.
      sample_tasks: `(rng, n) -> tasks`, such as `rulesets(benchmark)`.

    Raises:
      ValueError: for arguments of another kind.

    Example:

    >>> import xminigrid
    >>> from metajax.rl import xland
    >>> room, params = xminigrid.make("XLand-MiniGrid-R4-13x13", max_steps=100)
    >>> env = xland.from_xland(room, params, xland.find_object().sample_tasks)
    >>> env.observation_size, env.action_size, env.horizon  # 5 x 5 cells, 13 tiles and 12 colours
    (625, 6, 100)

    References:
      Nikulin et al., `XLand-MiniGrid: Scalable Meta-Reinforcement Learning Environments in JAX
      <https://arxiv.org/abs/2312.12044>`_, 2023.
    """
    if not hasattr(params, "ruleset") or not hasattr(environment, "step"):
        raise ValueError(
            "from_xland: environment and params must be those of an environment with rule sets, "
            f"such as xminigrid.make('XLand-MiniGrid-R1-9x9'), got {describe(environment)} and "
            f"{describe(params)}."
        )
    check_function("from_xland: sample_tasks", sample_tasks, "rng, n", " such as rulesets(...)")

    def shown(timestep: Any) -> EnvStep:
        tiles, colours = jnp.moveaxis(timestep.observation, -1, 0)
        parts = jax.nn.one_hot(tiles, NUM_TILES), jax.nn.one_hot(colours, NUM_COLORS)
        observation = jnp.concatenate(parts, axis=-1).reshape(-1)
        # `last` is also true at XLand's own time limit.
        done = timestep.last() & (timestep.reward > 0)
        return EnvStep(timestep, observation, timestep.reward.astype(float), done)

    def reset(rng: Key, task: Task) -> EnvStep:
        return shown(environment.reset(params.replace(ruleset=RuleSet(**task)), rng))

    def step(before: EnvStep, action: Array) -> EnvStep:
        return shown(environment.step(params, before.state, action))

    size = params.view_size**2 * (NUM_TILES + NUM_COLORS)
    actions = int(environment.num_actions(params))
    return Env(reset, step, sample_tasks, size, actions, int(params.max_steps), True)


def rulesets(benchmark: Any) -> Callable[[Key, int], dict[str, Array]]:
    """Draws tasks from a benchmark of XLand-MiniGrid.

    `benchmark.split` keeps some of its rule sets for testing. A file that has been downloaded is
    read by `xminigrid.benchmarks.load_benchmark_from_path`; it is a pickle, so read only what you
    trust.

    Args:
      benchmark: an `xminigrid.benchmarks.Benchmark`.

    Returns:
      `(rng, n) -> tasks`, for `from_xland`.

    Raises:
      ValueError: for something that is no benchmark.

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from xminigrid.benchmarks import Benchmark
    >>> from metajax.rl import xland
    >>> made = xland.find_object().sample_tasks(jax.random.key(0), 10)
    >>> benchmark = Benchmark(made["goal"], made["rules"], made["init_tiles"], jnp.zeros(10, int))
    >>> training, testing = benchmark.split(0.8)
    >>> xland.rulesets(training)(jax.random.key(1), 3)["goal"].shape
    (3, 5)
    """
    if not hasattr(benchmark, "init_tiles"):
        raise ValueError(
            f"rulesets: benchmark must be an xminigrid Benchmark, got {describe(benchmark)}."
        )

    def sample_tasks(rng: Key, n: int) -> dict[str, Array]:
        chosen = jax.random.randint(rng, (n,), 0, len(benchmark.goals))
        return {
            "goal": jnp.asarray(benchmark.goals)[chosen],
            "rules": jnp.asarray(benchmark.rules)[chosen],
            "init_tiles": jnp.asarray(benchmark.init_tiles)[chosen],
        }

    return sample_tasks


def find_object(*, size: int = 7, num_objects: int = 3, horizon: int = 30) -> Env:
    """A room with objects, one of which pays: made from XLand's own goals, without rules.

    Each task draws objects of different shapes and colours (five of each). The goal is to pick up
    the first of them, and the observation does not tell which that is; who has picked up another
    one must put it down first. In each episode objects and agent are somewhere else. What can be
    learned within a task is which object pays.

    Args:
      size: height and width of the room, with its walls.
      num_objects: objects in the room, at most five.
      horizon: the most steps per episode.

    Returns:
      An `Env` whose tasks are those of `from_xland`.

    Raises:
      ValueError: for numbers out of range.

    Example:

    >>> import jax
    >>> from metajax.rl import xland
    >>> env = xland.find_object()
    >>> env.sample_tasks(jax.random.key(0), 4)["init_tiles"].shape
    (4, 3, 2)
    """
    size, horizon = (
        check_integer(f"find_object: {name}", value)
        for name, value in (("size", size), ("horizon", horizon))
    )
    num_objects = check_integer("find_object: num_objects", num_objects)
    if num_objects > len(SHAPES):
        raise ValueError(f"find_object: num_objects must be at most {len(SHAPES)}.")
    if size < 5:
        raise ValueError("find_object: size must be at least 5, a room of 3 x 3 and its walls.")
    environment, params = xminigrid.make(
        "XLand-MiniGrid-R1-9x9", height=size, width=size, max_steps=horizon
    )

    def sample_task(rng: Key) -> dict[str, Array]:
        shape_rng, colour_rng = jax.random.split(rng)
        drawn = (num_objects,)
        shapes = jax.random.choice(shape_rng, jnp.array(SHAPES), drawn, replace=False)
        colours = jax.random.choice(colour_rng, jnp.array(COLOURS), drawn, replace=False)
        objects = jnp.stack([shapes, colours], axis=-1).astype(jnp.uint8)
        return {
            "goal": AgentHoldGoal(objects[0]).encode(),
            "rules": EmptyRule().encode()[None],
            "init_tiles": objects,
        }

    def sample_tasks(rng: Key, n: int) -> dict[str, Array]:
        return jax.vmap(sample_task)(jax.random.split(rng, n))

    return from_xland(environment, params, sample_tasks)
