"""Checkpoints of a run: its state, its best state and its record."""

from __future__ import annotations

import errno
import functools
import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from metajax.base import (
    Adapt,
    Array,
    MetaLearner,
    MetaParams,
    MetaState,
    Params,
    PyTree,
    Stateful,
    split_state,
)
from metajax.train.leaks import without_leak
from metajax.train.places import WorkdirError, accessing, files, is_local, move, place
from metajax.train.processes import from_first, is_first, local
from metajax.train.workdir import write_json
from metajax.train.writers import leaf_name, named

T = TypeVar("T")

# Beside the files of a checkpoint, written last: their SHA-256. Older checkpoints have none.
DIGESTS = "sha256.json"
# What a checkpoint may take beside its arrays.
SPARE_BYTES = 2**20

_logger = logging.getLogger(__name__)


def _only_here(record: logging.LogRecord) -> bool:
    """Whether orbax says so nowhere else: what ends one of its threads, `save` raises as well."""
    return "_SignalingThread.run() raised an exception" not in record.getMessage()


class Checkpoint(NamedTuple):
    """All that a run needs to resume after it was killed.

    Attributes:
      state: the meta-learner's state after `state.step` meta-updates.
      best: the state that scored best on the meta-validation tasks so far.
      record: JSON data: the seconds spent, the step and the metrics of the best state.
    """

    state: MetaState
    best: MetaState
    record: dict[str, Any]


class Checkpoints:
    """The checkpoints of a working directory, written by orbax; the last two are kept."""

    def __init__(self, workdir: Path, *, repair: bool = False):
        """Opens them.

        Args:
          workdir: the working directory.
          repair: whether damaged checkpoints are moved to the folder `damaged` of the workdir.
        """
        directory = workdir / "checkpoints"
        self._directory = directory.absolute() if is_local(directory) else directory
        self._repair = repair
        logging.getLogger("absl").addFilter(_only_here)
        with accessing(workdir):
            self._manager = ocp.CheckpointManager(
                self._directory,
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
        with accessing(self._directory), without_leak():
            from_first(functools.partial(self._check_room, checkpoint))
            self._manager.save(
                step,
                force=True,  # or orbax would ask for a preemption, which the run does itself
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(checkpoint.state),
                    best=ocp.args.StandardSave(checkpoint.best),
                    record=ocp.args.JsonSave(
                        {"leaves": _types(checkpoint.state), **checkpoint.record}
                    ),
                ),
            )
            if is_first():
                folder = self._directory / str(step)
                write_json(folder / DIGESTS, _digests(folder))

    def _check_room(self, checkpoint: Checkpoint) -> None:
        if not is_local(self._directory):
            return
        # Before orbax starts, whose threads would each report a full disk by a traceback.
        arrays = jax.tree.leaves((checkpoint.state, checkpoint.best))
        needed = SPARE_BYTES + sum(x.size * x.dtype.itemsize for x in arrays)
        if shutil.disk_usage(self._directory).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _newest(self, read: Callable[[int], T]) -> T | None:
        """What `read` makes of the newest checkpoint that is whole, `None` without one."""
        for step in sorted(self._manager.all_steps(), reverse=True):
            folder = self._directory / str(step)
            fault, verified = from_first(functools.partial(_verified, folder))
            if not fault:
                try:
                    with accessing(self._directory):
                        return read(step)
                except WorkdirError:
                    raise
                except Exception as error:  # of orbax or TensorStore, depending on the damage
                    if verified:
                        raise
                    fault = " ".join(str(error).split())[:200]
            from_first(functools.partial(self._leave_out, folder, fault))
            self._manager.reload()  # in every process: all of them save that step again
        return None

    def _leave_out(self, path: Path, fault: str) -> None:
        where = "it is left out"
        if self._repair:
            kept = self._directory.parent / "damaged"
            names = (f"{path.name}-{i}" if i else path.name for i in itertools.count())
            to = next(kept / name for name in names if not (kept / name).exists())
            with accessing(kept):
                kept.mkdir(exist_ok=True)
                move(path, to)
            where = f"it is now {to}"
        _logger.warning("the checkpoint %s is damaged (%s); %s.", path, fault, where)

    def restore(self, like: MetaState) -> Checkpoint | None:
        """The newest checkpoint that is whole, or `None` where there is none.

        Args:
          like: a state of the same structure, shapes and types.

        Raises:
          WorkdirError: if the checkpoint does not fit `like`.
        """
        return self._newest(lambda step: self._restore_state(step, like))

    def _restore_state(self, step: int, like: MetaState) -> Checkpoint:
        record = self._restore(step, record=ocp.args.JsonRestore())["record"]
        like = jax.tree.map(jnp.asarray, like)  # checkpoints hold arrays, not numbers
        self._check(step, record.pop("leaves"), _types(like))
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        states = self._restore(
            step,
            state=ocp.args.StandardRestore(abstract),
            best=ocp.args.StandardRestore(abstract),
        )
        # On one device uncommitted, like the state of a new run.
        state, best = jax.tree.map(_uncommitted, (states["state"], states["best"]))
        return Checkpoint(state, best, record)

    def restore_meta_params(self, like: MetaParams) -> MetaParams | None:
        """The best meta-parameters of the newest checkpoint that is whole, of any learner.

        Raises:
          WorkdirError: if the checkpoint does not fit `like`.
        """
        return self._newest(lambda step: self._restore_best(step, like))

    def _restore_best(self, step: int, like: MetaParams) -> MetaParams:
        # Orbax describes a checkpoint as nested dicts; their paths are those of the state. The
        # arrays are read onto a device of this process: the saved devices may not exist here.
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        held = ocp.StandardCheckpointHandler().metadata(self._directory / str(step) / "best")
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), _metadata_tree(held)
        )
        best = self._restore(step, best=ocp.args.StandardRestore(target))["best"]

        def restored(held: PyTree, like: PyTree) -> PyTree:
            self._check(step, _types(held), _types(like))
            found = named(held)
            return jax.tree_util.tree_map_with_path(
                lambda path, _: jnp.asarray(found[leaf_name(path)]), like
            )

        params, model = split_state(like.params)
        meta_params = restored(best["meta_params"], like._replace(params=params))
        if not isinstance(like.params, Stateful):
            return meta_params
        inner_state = best["inner_state"]
        model = restored(inner_state["model"] if isinstance(inner_state, dict) else (), model)
        return meta_params._replace(params=Stateful(meta_params.params, model))

    def _restore(self, step: int, **items: ocp.args.CheckpointArgs) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**items))

    def _check(self, step: int, there: dict[str, str], here: dict[str, str]) -> None:
        differing = [
            f"  {path}: {there.get(path, 'absent')} there, {here.get(path, 'absent')} here"
            for path in sorted({*there, *here})
            if there.get(path) != here.get(path)
        ]
        if differing:
            raise WorkdirError(
                f"the checkpoint of step {step} in {self._directory} does not fit this "
                "model and learner:\n" + "\n".join(differing) + "\nUse the configuration that "
                "made it, or choose another workdir."
            )

    def close(self) -> None:
        self._manager.close()


def load(workdir: str | Path, learner: MetaLearner, params: Params) -> Checkpoint:
    """Reads the last checkpoint of a working directory.

    Args:
      workdir: the working directory of a run.
      learner: a learner whose state has the same structure.
      params: parameters of the same shapes; their values are not used.

    Raises:
      FileNotFoundError: if there is no checkpoint.
      WorkdirError: if the checkpoint was made by another model or learner.
    """
    return _read(workdir, lambda checkpoints: checkpoints.restore(learner.init(params)))


def load_meta_params(workdir: str | Path, adapt: Adapt, params: Params) -> MetaParams:
    """Reads the best meta-parameters of a working directory, to adapt from them.

    The outer loop that trained them need not be known.

    Args:
      workdir: the working directory of a run.
      adapt: an inner loop; learned inner parameters, if any, have the same shapes.
      params: parameters of the same shapes, or a `Stateful`; the values are not used.

    Returns:
      Meta-parameters for `adapt.apply` and `metajax.evaluate`.

    Raises:
      FileNotFoundError: if there is no checkpoint.
      WorkdirError: if the checkpoint was made by another model, or with other inner parameters.

    Example:

    >>> import tempfile, jax, jax.numpy as jnp, optax, metajax
    >>> from metajax import nn, train
    >>> def loss(params, batch, rng):
    ...     x, y = batch
    ...     return jnp.mean((model.apply(params, x) - y) ** 2), {}
    >>> model, sinusoid = nn.sinusoid_mlp(), metajax.tasks.Sinusoid(shots=5, queries=5)
    >>> support, _ = sinusoid.sample(jax.random.key(0))
    >>> params = model.init(jax.random.key(0), support[0])
    >>> with tempfile.TemporaryDirectory() as workdir:
    ...     _ = train.fit(
    ...         metajax.reptile(loss, optax.sgd(0.01), optax.sgd(0.1), num_steps=4), params,
    ...         sinusoid, key=jax.random.key(1), num_meta_steps=1, meta_batch_size=2,
    ...         workdir=workdir, show_progress=False)
    ...     adapt = metajax.inner_loop(loss, optax.sgd(0.01), num_steps=10)
    ...     meta_params = train.load_meta_params(workdir, adapt, params)
    >>> adapted, _ = adapt.apply(meta_params, support, jax.random.key(2))
    """
    like = MetaParams(params, adapt.init(params)[0])
    return _read(workdir, lambda checkpoints: checkpoints.restore_meta_params(like))


def _read(workdir: str | Path, restore: Callable[[Checkpoints], T | None]) -> T:
    directory = place(workdir) / "checkpoints"
    if not directory.is_dir():
        raise FileNotFoundError(f"{workdir} has no checkpoints: train a model there first.")
    checkpoints = Checkpoints(place(workdir))
    try:
        found = restore(checkpoints)
    finally:
        checkpoints.close()
    if found is None:
        raise FileNotFoundError(f"{directory} holds no complete checkpoint: train further first.")
    return found


def _digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder but that of the digests, by its path in it."""
    found = {}
    for path in files(folder):
        name = path.relative_to(folder).as_posix()
        if name != DIGESTS:
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _verified(folder: Path) -> tuple[str, bool]:
    """What is wrong with a checkpoint, empty for nothing, and whether it has digests."""
    if not (folder / DIGESTS).exists():
        return "", False
    try:
        wanted = json.loads((folder / DIGESTS).read_text())
    except ValueError:
        return f"{DIGESTS} is no JSON", True
    found = _digests(folder)
    if wanted == found:
        return "", True
    if not isinstance(wanted, dict):
        return f"{DIGESTS} is no JSON object", True
    differing = next(
        name for name in sorted({*wanted, *found}) if wanted.get(name) != found.get(name)
    )
    return f"{differing} has changed since it was written", True


def _metadata_tree(metadata: Any) -> PyTree:
    """The tree that metadata describe; older versions of orbax return the tree itself."""
    return getattr(metadata, "tree", metadata)


def _types(tree: PyTree) -> dict[str, str]:
    return {
        name: f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
        for name, leaf in named(tree).items()
    }


def _uncommitted(x: Array) -> Array:
    return x if len(x.sharding.device_set) > 1 else local(x)
