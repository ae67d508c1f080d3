"""Environment steps per second of meta-training, of random actions and of a PyTorch sampler.

Command: python -m benchmarks.throughput [--cases NAME ...] [--devices=N] [--rounds=N] [--slow]

Needs `pip install "metajax[bench]"`. For each case these take turns in one process:

- `update`: successive meta-updates of the launcher's preset: tasks are sampled, policies roll out
  and adapt, and the trust region's step is taken;
- `sampling`: the rollouts of one adaptation step alone, under the same policy;
- `random`: the same environments stepped with random actions in one scan, without anything else;
- `gymnasium`: a PyTorch policy in Gymnasium's `SyncVectorEnv` on the same task, with the fastest
  number of environments in `PEER_SIZES`.

Cases that are not named keep their rows of the record.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import metajax
from benchmarks import timing
from experiments import agents, locomotion, navigation
from metajax import rl
from metajax.parallel import over_tasks
from metajax.tasks import meta_batch

PEER_SIZES = (10, 20, 100)


class Setup(NamedTuple):
    """An environment, and the settings of its launcher."""

    environment: str
    make_env: Callable[[Any], rl.Env]
    settings: Any


def _cheetah(backend: str) -> Setup:
    settings = dataclasses.replace(locomotion.PRESETS["reduced"], backend=backend)
    return Setup("cheetah_dir", locomotion.make_env, settings)


CASES = {
    "navigation": Setup("navigation", navigation.make_env, navigation.PRESETS["two_steps"]),
    **{f"cheetah_dir_{backend}": _cheetah(backend) for backend in ("spring", "generalized")},
}
SLOW = {f"cheetah_dir_{backend}": _cheetah(backend) for backend in ("positional", "mjx")}


class Timed(NamedTuple):
    """A case, and the number of environment steps per call."""

    case: timing.Case
    env_steps: float


def ours(settings: Any, env: rl.Env, mesh: Any) -> dict[str, Timed]:
    """`update`, `sampling` and `random` with a launcher's settings."""
    agent = agents.make_agent(settings, env, mesh)
    state, tasks = agent.learner.init(agent.params), rl.Tasks(env.sample_tasks)
    num_tasks, trajectories = settings.meta_batch_size, settings.trajectories
    key = jax.random.key(settings.seed)

    def update(carried):
        state, key = carried
        key, task_rng, rng = jax.random.split(key, 3)
        state, metrics = agent.learner.update(state, meta_batch(tasks, num_tasks, task_rng), rng)
        return (state, key), metrics

    def for_all(run_task, task_chunk):
        def run_chunk(params, tasks, carry):
            return jax.vmap(lambda task, rng: run_task(params, task, rng))(*tasks), carry

        mapped = over_tasks(run_chunk, task_chunk=task_chunk, mesh=mesh, stack=True)

        def run(params, key):
            task_rng, rng = jax.random.split(key)
            drawn = env.sample_tasks(task_rng, num_tasks)
            return mapped(params, (drawn, jax.random.split(rng, num_tasks)))[0]

        return run

    def sampling(params, task, rng):
        return rl.rollout(env, agent.policy, params, task, rng, trajectories)

    def random(params, task, rng):
        return random_actions(env, task, rng, trajectories)

    timed = {}
    call = timing.successive(update, (state, key))
    timed["update"] = Timed(call, float(call()["env_steps"]))
    chunk = settings.task_chunk or None
    call, _, _ = timing.compiled(for_all(sampling, chunk), agent.params, key)
    timed["sampling"] = Timed(call, float(call().mask.sum()))
    call, _, _ = timing.compiled(for_all(random, num_tasks), agent.params, key)
    timed["random"] = Timed(call, float(call()[0].sum()))
    return timed


def random_actions(env: rl.Env, task: Any, rng: jax.Array, num_trajectories: int) -> Any:
    """Steps an environment; returns the number of valid steps, and a sum that depends on all."""
    reset_rng, rng = jax.random.split(rng)

    def body(carry, rng):
        before, alive, shown = carry
        size = (num_trajectories, env.action_size)
        after = jax.vmap(env.step)(before, jax.random.uniform(rng, size, minval=-1.0, maxval=1.0))
        shown += jnp.sum(after.observation, axis=-1) + after.reward
        return (after, alive & ~after.done, shown), jnp.sum(alive)

    resets = jax.random.split(reset_rng, num_trajectories)
    first = jax.vmap(env.reset, in_axes=(0, None))(resets, task)
    start = first, ~first.done, jnp.zeros(num_trajectories)
    (_, _, shown), counts = jax.lax.scan(body, start, jax.random.split(rng, env.horizon))
    return jnp.sum(counts), shown


def gymnasium(setup: Setup, init_std: float, env: rl.Env, sizes: Any) -> dict[str, Timed]:
    """The peer with its fastest number of environments."""
    from benchmarks import gymnasium_peers

    make = gymnasium_peers.PEERS[setup.environment]
    found = {}
    for size in sizes:
        case = gymnasium_peers.sampler(make, size, env.horizon, init_std)
        found[size] = Timed(case, size * env.horizon)
    times = timing.race({str(size): timed.case for size, timed in found.items()}, rounds=1)
    best = max(found, key=lambda size: found[size].env_steps / times[str(size)]["median"])
    return {f"gymnasium, {best} environments": found[best]}


def measure(
    name: str,
    rounds: int,
    *,
    devices: int = 1,
    peer_sizes: tuple[int, ...] = PEER_SIZES,
    **changes: Any,
) -> list[dict[str, Any]]:
    """Races a case; `changes` are to the launcher's settings."""
    setup = (CASES | SLOW)[name]
    settings = dataclasses.replace(setup.settings, **changes)
    env = setup.make_env(settings)
    mesh = metajax.task_mesh(devices) if devices > 1 else None
    timed = ours(settings, env, mesh) | gymnasium(setup, settings.init_std, env, peer_sizes)
    times = timing.race({label: entry.case for label, entry in timed.items()}, rounds)
    rates = {label: timed[label].env_steps / times[label]["median"] for label in timed}
    peer = next(label for label in timed if label.startswith("gymnasium"))
    rows = [
        {
            "case": name,
            "what": label,
            "env_steps": timed[label].env_steps,
            **times[label],
            "env_steps_per_second": rates[label],
            "of_random": rates[label] / rates["random"],
            "over_gymnasium": rates[label] / rates[peer],
        }
        for label in timed
    ]
    # The same number of steps, sampled and learned from.
    rows[0]["sampling_share"] = rates["update"] / rates["sampling"]
    common_entries = {
        "devices": devices,
        "tasks": settings.meta_batch_size,
        "trajectories": settings.trajectories,
        "num_steps": settings.num_steps,
        "task_chunk": settings.task_chunk,
        "horizon": env.horizon,
        "algorithm": settings.algorithm,
    }
    return [row | common_entries for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=[*CASES, *SLOW])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--devices", type=int, default=1, help="that share the tasks; on a CPU too")
    parser.add_argument("--slow", action="store_true", help=f"also {', '.join(SLOW)}")
    arguments = parser.parse_args()
    if arguments.devices > 1:
        jax.config.update("jax_num_cpu_devices", arguments.devices)
    names = arguments.cases or [*CASES, *(SLOW if arguments.slow else ())]
    rows = [
        row for name in names for row in measure(name, arguments.rounds, devices=arguments.devices)
    ]
    timing.write(
        "throughput",
        rows,
        key=lambda row: (row["case"], row["device"]["kind"]),
        rounds=arguments.rounds,
        peers=timing.peer_versions("torch", "gymnasium", "mujoco", "brax"),
    )


if __name__ == "__main__":
    main()
