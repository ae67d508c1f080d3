"""Checks of arguments: their kinds, shapes and ranges, but never the values of arrays."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from metajax.base import check_function, check_integer, check_kind, describe, same_structure
from metajax.rl.base import Env, EnvStep, Trajectories


def check_env(what: str, env: Any) -> None:
    """Raises `ValueError` unless `env` is an `Env` with positive sizes."""
    check_kind(f"{what}: env", env, Env, "for example from rl.from_gymnax or rl.from_brax")
    for name in ("observation_size", "action_size", "horizon"):
        check_integer(f"{what}: env.{name}", getattr(env, name))


def check_policy(what: str, policy: Any) -> None:
    """Raises `ValueError` unless `policy` is a function `(params, observations)`."""
    if not callable(policy) or hasattr(policy, "apply"):
        raise ValueError(
            f"{what}: the policy must be a function (params, observations), such as model.apply, "
            f"got {describe(policy)}."
        )
    check_function(f"{what}: the policy", policy, "params, observations")


def check_step(name: str, step: Any, env: Env, count: int) -> None:
    """Raises `ValueError` unless `env.reset` or `env.step` returns arrays of the right shapes.

    Args:
      name: `"reset"` or `"step"`.
      step: the returned value under `jax.vmap`, leaves `[count, ...]`.
      env: the environment.
      count: number of trajectories.
    """
    check_kind(f"the value that env.{name} returns", step, EnvStep, "see metajax.rl.Env")
    expected = [(count, env.observation_size), (count,), (count,)]
    if [jnp.shape(x) for x in step[1:]] != expected or step.done.dtype != bool:
        raise ValueError(
            f"env.{name} of one task must return an observation [{env.observation_size}], a scalar "
            f"reward and a scalar bool done; for {count} trajectories it returned "
            f"{', '.join(map(describe, step[1:]))}."
        )


def check_same(before: EnvStep, after: EnvStep) -> None:
    """Raises `ValueError` if a step changes the structure, or the shape or type of an array."""
    if not same_structure(before, after):
        raise ValueError(
            "env.step must return the same structure as its argument, "
            f"{describe(jax.tree.structure(before))}, but it returned "
            f"{describe(jax.tree.structure(after))}."
        )
    leaves = jax.tree_util.tree_leaves_with_path(before)
    for (path, x), y in zip(leaves, jax.tree.leaves(after), strict=True):
        # A Python number may become an array of any type.
        if x.shape != y.shape or (x.dtype != y.dtype and not x.weak_type):
            raise ValueError(
                f"env.step must keep shapes and types, but {jax.tree_util.keystr(path)} is "
                f"{describe(x)} before the step and {describe(y)} after it."
            )


def check_memory(before: Any, after: Any) -> None:
    """Raises `ValueError` if a step of a `Recurrent` policy changes the kind of its memory."""
    kinds = [jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), x) for x in (before, after)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            "a step of a Recurrent policy must keep the structure, shapes and types of its memory, "
            f"which starts as {describe(jax.tree.map(describe, before))} and becomes "
            f"{describe(jax.tree.map(describe, after))}."
        )


def check_distribution(distribution: Any, env: Env, count: int) -> None:
    """Raises `ValueError` unless a policy's output for `count` observations suits `env`."""
    missing = [x for x in ("sample", "log_prob", "kl", "entropy") if not hasattr(distribution, x)]
    if missing:
        raise ValueError(
            "the policy must return a distribution such as rl.Normal or rl.Categorical; "
            f"{describe(distribution)} has no {missing[0]}."
        )
    for leaf in jax.tree.leaves(distribution):
        shape = jnp.shape(leaf)
        if len(shape) < 2 or (shape[0], shape[-1]) != (count, env.action_size):
            raise ValueError(
                f"the arrays of the policy's distribution must be [{count}, {env.action_size}] for "
                f"{count} observations and env.action_size={env.action_size}, got {describe(leaf)}."
            )


def check_trajectories(what: str, trajectories: Any, *names: str) -> None:
    """Raises `ValueError` unless the named arrays have the shape of the mask."""
    check_kind(f"{what}: trajectories", trajectories, Trajectories, "such as rl.rollout returns")
    for name in names:
        array = getattr(trajectories, name)
        if isinstance(array, tuple):
            raise ValueError(
                f"{what}: the trajectories have no {name}; rl.sampler computes them, and so does "
                "rl.standardized_advantages."
            )
        if jnp.shape(array) != jnp.shape(trajectories.mask):
            raise ValueError(
                f"{what}: {name} and mask must both be [trajectories, horizon], but they are "
                f"{describe(array)} and {describe(trajectories.mask)}."
            )
