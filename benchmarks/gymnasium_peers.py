"""Samplers in Gymnasium and PyTorch for the tasks of `throughput`, as users write them.

Environments are stepped one after the other by `SyncVectorEnv`; the policy, the same 2 x 100
network, sees all of their observations at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv

from benchmarks import timing

Make = Callable[[int], gymnasium.Env]
"""`index of the rollout -> its environment`."""


class Navigation(gymnasium.Env[np.ndarray, np.ndarray]):
    """A point moves towards a goal, as `metajax.rl.navigation` with the reward `distance`."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, goal: np.ndarray):
        self.goal = goal
        self.position = np.zeros(2, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.position = np.zeros(2, np.float32)
        return self.position, {}

    def step(self, action: np.ndarray):
        self.position = self.position + np.clip(0.1 * action, -0.1, 0.1)
        away = self.position - self.goal
        reward = -float(np.sqrt((away**2).sum()))
        return self.position, reward, bool((np.abs(away) < 0.01).all()), False, {}


def navigation(number: int) -> gymnasium.Env:
    rng = np.random.default_rng(number)
    return Navigation(rng.uniform(-0.5, 0.5, 2).astype(np.float32))


def cheetah_dir(number: int) -> gymnasium.Env:
    """MuJoCo's half-cheetah with the paper's time step of 0.01 s, control cost and directions."""
    return gymnasium.make(
        "HalfCheetah-v5",
        frame_skip=1,
        ctrl_cost_weight=0.05,
        forward_reward_weight=1.0 if number % 2 else -1.0,
        disable_env_checker=True,
    )


PEERS: dict[str, Make] = {"navigation": navigation, "cheetah_dir": cheetah_dir}


class Policy(torch.nn.Module):
    """A Gaussian with the mean of a 2 x 100 network and a standard deviation of its own."""

    def __init__(self, observation_size: int, action_size: int, std: float) -> None:
        super().__init__()
        linear, relu = torch.nn.Linear, torch.nn.ReLU
        into, out = linear(observation_size, 100), linear(100, action_size)
        self.mean = torch.nn.Sequential(into, relu(), linear(100, 100), relu(), out)
        self.log_std = torch.nn.Parameter(torch.full((action_size,), std).log())

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        mean = self.mean(observations)
        return mean + self.log_std.exp() * torch.randn_like(mean)


def sampler(make: Make, num_envs: int, horizon: int, std: float) -> timing.Case:
    """One rollout of `horizon` steps in each of `num_envs` environments."""
    envs: Any = SyncVectorEnv([functools.partial(make, i) for i in range(num_envs)])
    spaces = envs.single_observation_space, envs.single_action_space
    observation_size, action_size = (int(np.prod(space.shape)) for space in spaces)
    policy = Policy(observation_size, action_size, std)

    @torch.no_grad()
    def sample() -> tuple[np.ndarray, ...]:
        observation, _ = envs.reset()
        kept = []
        for _ in range(horizon):
            action = policy(torch.from_numpy(observation.astype(np.float32))).numpy()
            after, reward, ended, _, _ = envs.step(np.clip(action, -1.0, 1.0))
            kept.append((observation, action, reward, ended))
            observation = after
        return tuple(np.stack(parts) for parts in zip(*kept, strict=True))

    return sample
