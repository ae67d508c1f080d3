"""The folder of the records, and their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.command import with_changes
from experiments.launchers import EXPERIMENTS
from experiments.settings import evaluation_config, training_config

RESULTS = Path(__file__).parent / "results"
PLATFORMS = ("cpu", "gpu", "tpu")
# Settings that the folder names elsewhere, or that do not affect results.
NOT_NAMED = ("seed", "algorithm", "task_chunk", "steps_per_call", "checkpoint_every", "weights")


def named(name: str, platform: str) -> str:
    """The name, without its ending, of the file with the measurements on a platform."""
    return name if platform == "cpu" else f"{name}_{platform}"


def record_folder(result: dict[str, Any]) -> Path:
    """The folder of a run's record, below `RESULTS`."""
    (launcher,) = (each for each in EXPERIMENTS if each.name == result["experiment"])
    algorithm, config = result["algorithm"], result["config"]
    settings, _ = with_changes(launcher, result["preset"], {"algorithm": algorithm})
    expected = {**training_config(settings), **evaluation_config(settings)}
    changed = [
        f"{name}={config[name]}"
        for name, value in expected.items()
        if name not in NOT_NAMED and config.get(name, value) != value
    ]
    if start := result.get("started_from"):
        changed.append(f"weights={start['sha256'][:8]}")
    run = ",".join([algorithm, *changed])
    seed = named(f"seed{config['seed']}", trained_on(result)["device"]["platform"])
    return Path(result["experiment"], result["preset"], run, seed)


def trained_on(result: dict[str, Any]) -> dict[str, Any]:
    """The devices of a run's training; older records list all devices of the run."""
    return result.get("trained_on", result)
