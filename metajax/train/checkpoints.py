"""Checkpoints: the state, the best state so far and how far the run has come, in one step."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from metajax.base import MetaState
from metajax.train.workdir import WorkdirError


class Checkpoint(NamedTuple):
    """What is saved together, so that a killed run resumes as if nothing had happened.

    Attributes:
      state: the meta-learner's state after `state.step` meta-updates.
      best: the state that scored best on the meta-validation tasks so far.
      record: JSON data: seconds spent, the best state's step and metrics.
    """

    state: MetaState
    best: MetaState
    record: dict[str, Any]


class Checkpoints:
    """The checkpoints of a working directory, written by orbax; the last two are kept."""

    def __init__(self, workdir: Path):
        self._manager = ocp.CheckpointManager(
            (workdir / "checkpoints").absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=2,
                # A donated buffer may be reused before a background write has read it.
                enable_async_checkpointing=False,
            ),
        )

    def save(self, checkpoint: Checkpoint) -> None:
        step = int(checkpoint.state.step)
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(checkpoint.state),
                best=ocp.args.StandardSave(checkpoint.best),
                record=ocp.args.JsonSave(
                    {"leaves": _leaves(checkpoint.state), **checkpoint.record}
                ),
            ),
        )

    def restore(self, like: MetaState) -> Checkpoint | None:
        """The latest checkpoint, or `None` where there is none.

        Args:
          like: a state of the same structure, for its shapes and types.

        Raises:
          WorkdirError: if the checkpoint does not fit `like`.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        record = self._restore(step, record=ocp.args.JsonRestore())["record"]
        self._check(step, record.pop("leaves"), _leaves(like))
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        states = self._restore(
            step,
            state=ocp.args.StandardRestore(abstract),
            best=ocp.args.StandardRestore(abstract),
        )
        return Checkpoint(states["state"], states["best"], record)

    def _restore(self, step: int, **items: ocp.args.CheckpointArgs) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**items))

    def _check(self, step: int, there: dict[str, str], here: dict[str, str]) -> None:
        differing = [
            f"  state{path}: {there.get(path, 'absent')} there, {here.get(path, 'absent')} here"
            for path in sorted({*there, *here})
            if there.get(path) != here.get(path)
        ]
        if differing:
            raise WorkdirError(
                f"the checkpoint of step {step} in {self._manager.directory} does not fit this "
                "model and learner:\n" + "\n".join(differing) + "\nRepeat the configuration it "
                "was made with, or choose another workdir."
            )

    def close(self) -> None:
        self._manager.close()


def _leaves(state: MetaState) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
