"""Checkpoints: the state, the best state so far and how far the run has come, in one step."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from metajax.base import MetaState
from metajax.train.workdir import WorkdirError

STATE, BEST, RECORD = "state", "best", "record"


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
                record=ocp.args.JsonSave(checkpoint.record),
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
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract),
                    best=ocp.args.StandardRestore(abstract),
                    record=ocp.args.JsonRestore(),
                ),
            )
        except (ValueError, KeyError) as error:
            raise WorkdirError(
                f"the checkpoint of step {step} below {self._manager.directory} does not fit this "
                f"model and learner; repeat the configuration it was made with. ({error})"
            ) from error
        return Checkpoint(restored[STATE], restored[BEST], restored[RECORD])

    def close(self) -> None:
        self._manager.close()
