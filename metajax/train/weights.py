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

from metajax.base import Adapt, MetaParams, MetaState, Params, PyTree, Stateful, split_state
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
    found = _filled(path, _read(path), tree, ("meta_params", "inner_state/model")[: len(tree)])
    if isinstance(params, Stateful):
        state = Stateful(found["meta_params"].params, found["inner_state"]["model"])
        return found["meta_params"]._replace(params=state)
    return found["meta_params"]


def load_params(path: str | Path, params: Params) -> Params:
    """Reads the parameters alone, to train or adapt from them by any algorithm.

    Args:
      path: a file of `save_weights`, or its folder, as in `load_weights`; or any safetensors file
        whose arrays are named by the paths of the parameters, such as `params/head/kernel`.
      params: parameters of the same shapes and types; the values are not used.

    Raises:
      FileNotFoundError: if there is no such file.
      WeightsError: if the file is damaged, differs from its SHA-256, or is of another model.

    Example, what Meta-SGD learned without its step sizes, and a file from elsewhere:

    >>> import tempfile, jax.numpy as jnp, optax, metajax
    >>> from metajax import train
    >>> from safetensors.flax import save_file
    >>> loss = lambda params, x, rng: (jnp.mean((params["w"] - x) ** 2), {})
    >>> learner = metajax.meta_sgd(loss, optax.adam(1e-3), learning_rate=0.1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     digest = train.save_weights(folder, learner.init({"w": jnp.ones(3)}))
    ...     learned = train.load_params(folder, {"w": jnp.zeros(3)})
    ...     save_file({"w": jnp.full(3, 2.0)}, f"{folder}/pretrained.safetensors")
    ...     pretrained = train.load_params(f"{folder}/pretrained.safetensors", learned)
    >>> learned["w"].tolist(), pretrained["w"].tolist()
    ([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])
    """
    arrays = _read(path)
    if not any(name.startswith("meta_params/") for name in arrays):
        return _filled(path, arrays, params)
    own, _ = split_state(params)
    tree: dict[str, Any] = {"meta_params": {"params": own}}
    if isinstance(params, Stateful):
        tree["inner_state"] = {"model": params.state}
    found = _filled(path, arrays, tree, ("meta_params/params", "inner_state/model")[: len(tree)])
    own = found["meta_params"]["params"]
    return Stateful(own, found["inner_state"]["model"]) if isinstance(params, Stateful) else own


def load_state(path: str | Path, like: MetaState) -> MetaState:
    """The state `like`, with the meta-parameters and the inner state of a file."""
    tree = _tree(like)
    return like._replace(**_filled(path, _read(path), tree))


def weights_digest(path: str | Path) -> str:
    """The SHA-256 of a file of weights, or of that in a folder."""
    return hashlib.sha256(_file(path).read_bytes()).hexdigest()


def _read(path: str | Path) -> dict[str, jax.Array]:
    """The arrays of a file. A `result.json` beside it must have its SHA-256."""
    path = _file(path)
    if not path.exists():
        raise FileNotFoundError(f"there are no weights in {path}.")
    result = path.with_name("result.json")
    if result.exists():
        weights = read_json(result).get("weights")
        expected = weights.get("sha256") if isinstance(weights, dict) else None
        found = weights_digest(path)
        if expected not in (None, found):
            raise WeightsError(f"{path} has the SHA-256 {found}, {result} says {expected}.")
    try:
        return _load(path)
    except SafetensorError as error:
        raise WeightsError(f"{path} is damaged: {error}.") from error


def _filled(
    path: str | Path, arrays: dict[str, jax.Array], tree: PyTree, within: Sequence[str] = ("",)
) -> Any:
    """A tree with the arrays of a file in place of its own, all of those `within` some parts."""
    wanted = _arrays(tree)
    parts = tuple(f"{part}/" if part else "" for part in within)
    arrays = {name: x for name, x in arrays.items() if f"{name}/".startswith(parts)}
    differing = [
        f"{name} is {_type(arrays.get(name))} there, {_type(wanted.get(name))} here"
        for name in sorted({*arrays, *wanted})
        if _type(arrays.get(name)) != _type(wanted.get(name))
    ]
    if differing:
        raise WeightsError(f"{_file(path)} is of another model: {'; '.join(differing)}.")
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


def _arrays(tree: PyTree) -> dict[str, jax.Array]:
    return {name: jnp.asarray(x) for name, x in named(tree).items()}


def _type(x: jax.Array | None) -> str:
    return "absent" if x is None else f"{x.dtype}{list(x.shape)}"
