"""What was meta-learned in one file that anyone can check and read: safetensors."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from safetensors import SafetensorError
from safetensors.flax import load_file, save

from metajax.base import Adapt, MetaParams, MetaState, Params, Stateful, split_state
from metajax.train.places import copy, is_local, place
from metajax.train.workdir import read_json
from metajax.train.writers import named

FILE = "weights.safetensors"


class WeightsError(ValueError):
    """The file of weights is damaged, or of another model."""


def save_weights(path: str | Path, state: MetaState | MetaParams) -> str:
    """Writes meta-parameters, and the inner state that evaluation starts from.

    Args:
      path: the file, or an existing folder for `weights.safetensors`.
      state: of a `MetaState` the optimizer's state and the step are left out.

    Returns:
      The SHA-256 of the file.

    Raises:
      WeightsError: if an array is a key of random numbers, which the format has no type for.
    """
    path = _file(path)
    arrays = _arrays(_tree(state))
    for name, array in arrays.items():
        if jnp.issubdtype(array.dtype, jax.dtypes.extended):
            raise WeightsError(f"{name} is {array.dtype}, which safetensors cannot hold.")
    path.parent.mkdir(parents=True, exist_ok=True)
    data = save(arrays)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def load_weights(path: str | Path, adapt: Adapt, params: Params) -> MetaParams:
    """Reads meta-parameters, to adapt from them.

    Args:
      path: a file of `save_weights`, or a folder that holds `weights.safetensors`, such as a record
        of `benchmarks/results`. Where the folder has a `result.json`, its SHA-256 is compared.
      adapt: an inner loop with learned inner parameters of the same shapes, such as none.
      params: parameters of the same shapes; the values are not used.

    Returns:
      What `adapt.apply` and `metajax.evaluate` take.

    Raises:
      FileNotFoundError: if there is no such file.
      WeightsError: if the file is damaged, differs from its SHA-256, or is of another model.

    Example:

    >>> import tempfile, jax, jax.numpy as jnp, optax, metajax
    >>> from metajax import train
    >>> loss = lambda params, x, rng: (jnp.mean((params["w"] - x) ** 2), {})
    >>> learner = metajax.maml(loss, optax.sgd(0.1), optax.adam(1e-3))
    >>> state = learner.init({"w": jnp.ones(3)})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     digest = train.save_weights(folder, state)
    ...     meta_params = train.load_weights(folder, learner.inner, {"w": jnp.zeros(3)})
    >>> meta_params.params["w"].tolist()
    [1.0, 1.0, 1.0]
    """
    own, model = split_state(params)
    tree: dict[str, Any] = {"meta_params": MetaParams(own, adapt.init(params)[0])}
    if isinstance(params, Stateful):
        tree["inner_state"] = {"model": model}
    # Of the inner state at most the model's part: the rest is for those who have the learner.
    found = _filled(path, tree, ("meta_params", "inner_state/model")[: len(tree)])
    if isinstance(params, Stateful):
        state = Stateful(found["meta_params"].params, found["inner_state"]["model"])
        return found["meta_params"]._replace(params=state)
    return found["meta_params"]


def load_state(path: str | Path, like: MetaState) -> MetaState:
    """The state `like`, with the meta-parameters and the inner state of a file."""
    tree = _tree(like)
    return like._replace(**_filled(path, tree, tuple(tree)))


def _filled(path: str | Path, tree: dict[str, Any], within: Sequence[str]) -> dict[str, Any]:
    """A tree with the arrays of a file in place of its own, all of those `within` some parts."""
    path = _file(path)
    if not path.exists():
        raise FileNotFoundError(f"there are no weights in {path}.")
    result = path.with_name("result.json")
    if result.exists():
        weights = read_json(result).get("weights")
        expected = weights.get("sha256") if isinstance(weights, dict) else None
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if expected not in (None, found):
            raise WeightsError(f"{path} has the SHA-256 {found}, {result} says {expected}.")
    try:
        arrays: dict[str, jax.Array] = _load(path)
    except SafetensorError as error:
        raise WeightsError(f"{path} is damaged: {error}.") from error
    wanted = _arrays(tree)
    parts = tuple(f"{part}/" for part in within)
    arrays = {name: x for name, x in arrays.items() if f"{name}/".startswith(parts)}
    differing = [
        f"{name} is {_type(arrays.get(name))} there, {_type(wanted.get(name))} here"
        for name in sorted({*arrays, *wanted})
        if _type(arrays.get(name)) != _type(wanted.get(name))
    ]
    if differing:
        raise WeightsError(f"{path} is of another model: {'; '.join(differing)}.")
    leaves = [arrays[name] for name in named(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _load(path: Path) -> dict[str, jax.Array]:
    if is_local(path):
        return load_file(path)
    with tempfile.TemporaryDirectory() as folder:
        copy(path, Path(folder) / FILE)
        return load_file(Path(folder) / FILE)


def _file(path: str | Path) -> Path:
    where = place(path)
    return where / FILE if where.is_dir() else where


def _tree(state: MetaState | MetaParams) -> dict[str, Any]:
    if isinstance(state, MetaParams):
        return {"meta_params": state}
    return {"meta_params": state.meta_params, "inner_state": state.inner_state}


def _arrays(tree: dict[str, Any]) -> dict[str, jax.Array]:
    return {name: jnp.asarray(x) for name, x in named(tree).items()}


def _type(x: jax.Array | None) -> str:
    return "absent" if x is None else f"{x.dtype}{list(x.shape)}"
