"""Kills a run with SIGKILL, repeats its command, and compares it with an uninterrupted run.

Command: python -m benchmarks.resume EXPERIMENT [flags of the experiment]

Writes `benchmarks/results/resume_EXPERIMENT.json`: where the run was killed, how many arrays of the
last checkpoint (state and best state) were compared, and whether all are equal bit for bit.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from benchmarks.results_folder import RESULTS
from metajax import train


def launch(experiment: str, flags: list[str], workdir: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", f"experiments.{experiment}", *flags, f"--workdir={workdir}"]
    return subprocess.Popen(command)


def finish(process: subprocess.Popen) -> None:
    if process.wait():
        sys.exit("the run failed; see its messages above")


def kill_in_the_middle(experiment: str, flags: list[str], workdir: Path) -> int:
    """Kills a run after its first checkpoint, and returns the checkpoint from which it resumes."""
    process = launch(experiment, flags, workdir)
    while not (steps := checkpoints(workdir)):
        if process.poll() is not None:
            sys.exit("the run ended before its first checkpoint: lower --checkpoint_every")
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        sys.exit("the run ended before it could be killed: raise --num_meta_steps")
    steps = checkpoints(workdir)
    return max(steps)


def checkpoints(workdir: Path) -> list[int]:
    path = workdir / "checkpoints"
    return [int(name) for name in os.listdir(path) if name.isdigit()] if path.exists() else []


def arrays(workdir: Path) -> dict[str, np.ndarray]:
    """All arrays of the last checkpoint, by name."""
    step = max(checkpoints(workdir))
    found: dict[str, np.ndarray] = {}
    # Onto a device of this process: those that wrote may have been of others.
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        for item in ("state", "best"):
            path = (workdir / "checkpoints" / str(step) / item).absolute()
            held = checkpointer.metadata(path).item_metadata.tree
            target = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), held
            )
            tree = checkpointer.restore(path, target)
            for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
                found[f"{step}/{item}{jax.tree_util.keystr(keys)}"] = np.asarray(leaf)
    return found


def compare(experiment: str, flags: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        whole, killed = Path(directory) / "whole", Path(directory) / "killed"
        fallback = kill_in_the_middle(experiment, flags, killed)
        finish(launch(experiment, flags, killed))
        finish(launch(experiment, flags, whole))
        a, b = arrays(whole), arrays(killed)
        meta_steps = json.loads((whole / "result.json").read_text())["meta_steps"]
    differing = [
        name
        for name in sorted({*a, *b})
        if name not in a or name not in b or a[name].tobytes() != b[name].tobytes()
    ]
    return {
        "command": f"python -m benchmarks.resume {experiment} " + " ".join(flags),
        "meta_steps": meta_steps,
        "resumed_from": fallback,
        "arrays_compared": len(a),
        "values_compared": int(sum(array.size for array in a.values())),
        "differing": differing,
        "bit_exact": not differing and len(a) > 0,
        **train.provenance(),
    }


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    experiment, *flags = sys.argv[1:]
    found = compare(experiment, flags)
    train.write_json(RESULTS / f"resume_{experiment}.json", found)
    print(json.dumps(found, indent=2))
    if not found["bit_exact"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
