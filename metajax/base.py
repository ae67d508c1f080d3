"""The types that everything else is written in: episodes, meta-parameters, meta-learners."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

Array = jax.Array
Key = jax.Array
PyTree = Any
Params = PyTree
Batch = PyTree
Aux = PyTree
Metrics = dict[str, Any]


class LossFn(Protocol):
    """A loss on one batch of one task.

    Any function `(params, batch, rng) -> (scalar loss, pytree of metrics)` is one, whatever
    library the model behind it comes from. With a state beside the parameters, `params` is a
    `Stateful`, and a loss that changes the state returns the new one as a third value.
    """

    def __call__(self, params: Params, batch: Batch, rng: Key, /) -> tuple[Any, ...]: ...


class Stateful(NamedTuple):
    """Parameters with a state that the model writes: batch statistics, spectral norms, key counts.

    Pass it to `MetaLearner.init` in place of the parameters. A loss takes it and returns
    `(scalar, metrics, new state)`. No gradient crosses the state and no optimizer moves it: it
    flows through the inner steps and the query loss of a task, each task starts from that of the
    `MetaState`, and the states that the tasks end with are averaged (integers and keys are taken
    from the first task). Adapted parameters and what a metric sees are `Stateful`, too.

    Attributes:
      params: what adapts and is meta-learned.
      state: what the model writes.

    Example, a running mean:

    >>> import jax, jax.numpy as jnp, optax, metajax
    >>> def loss(model, batch, rng):
    ...     mean = 0.9 * model.state + 0.1 * jnp.mean(batch)
    ...     return jnp.mean((model.params - batch) ** 2), {}, mean
    >>> learner = metajax.maml(loss, optax.sgd(0.1), optax.adam(1e-3), num_steps=2)
    >>> state = learner.init(metajax.Stateful(jnp.zeros(()), jnp.zeros(())))
    >>> batch = jnp.ones((4, 5))
    >>> state, _ = jax.jit(learner.update)(state, metajax.Episode(batch, batch), jax.random.key(0))
    >>> float(state.inner_state.model)  # after two inner steps and the query
    0.271...
    """

    params: Params
    state: PyTree


class InnerState(NamedTuple):
    """What flows from task to task where the model has a state, see `Stateful`.

    Attributes:
      optimizer: the inner optimizer's state; `()` where each task starts from a fresh one.
      model: the model's state.
    """

    optimizer: PyTree
    model: PyTree


class Episode(NamedTuple):
    """One task's data; with a leading task axis on every leaf, a meta-batch of tasks.

    Attributes:
      support: what the inner loop adapts on, leaves `[shots, ...]` (`[tasks, shots, ...]`).
      query: what the adapted parameters are judged on, leaves `[queries, ...]`.
    """

    support: Batch
    query: Batch


class MetaParams(NamedTuple):
    """What the outer loop learns.

    Attributes:
      params: the initialization from which every task adapts.
      inner: learned hyper-parameters of the inner optimizer; `()` when there are none.
    """

    params: Params
    inner: PyTree = ()


class MetaState(NamedTuple):
    """The state of a meta-learner.

    Attributes:
      meta_params: what is learned.
      opt_state: the outer optimizer's state.
      inner_state: the inner optimizer's state that is carried from one meta-update to the next,
        `()` where each task starts from a fresh one; an `InnerState` where the model has one, too.
      step: int32 count of meta-updates.
    """

    meta_params: MetaParams
    opt_state: PyTree
    inner_state: PyTree
    step: Array


class MetaLearner(NamedTuple):
    """A meta-learning algorithm as three pure functions.

    Attributes:
      init: `params -> MetaState`.
      adapt: `(state, support, rng) -> adapted params`, for one task.
      update: `(state, episodes, rng) -> (state, metrics)`, one meta-update on a meta-batch whose
        leaves are `[tasks, ...]`. No metric is required, but `train.fit` names the meta-step at
        which a scalar `objective` or `meta_gradient_norm` among them is not finite.
      inner: the inner loop that `update` trains, an `Adapt` or an `rl.InnerLoop`; `None` for a
        learner without one. `inner.rebuild` makes it again with other steps.
    """

    init: Callable[[Params], MetaState]
    adapt: Callable[[MetaState, Batch, Key], Params]
    update: Callable[[MetaState, Episode, Key], tuple[MetaState, Metrics]]
    inner: Any = None


class AdaptInfo(NamedTuple):
    """What one task's adaptation reports, stacked over inner steps.

    Attributes:
      loss: `[num_steps]`, support loss before each step.
      aux: the loss function's own metrics before each step, leaves `[num_steps, ...]`.
      probe: the probe's outputs, leaves `[num_steps + 1, ...]`; `()` without a probe.
      inner_state: what is carried on, as in `MetaState`.
    """

    loss: Array
    aux: Aux
    probe: PyTree
    inner_state: PyTree


class Adapt(NamedTuple):
    """An inner loop, as `metajax.inner_loop` builds it.

    Attributes:
      init: `params -> (learned inner parameters, carried inner state)`.
      apply: `(meta_params, support, rng, *, inner_state=(), probe=None) -> (adapted, AdaptInfo)`,
        for one task. `probe(params, step)` is evaluated on the parameters before every step and
        after the last one.
      rebuild: `(*, num_steps, batches) -> Adapt`, the same inner loop with other steps or batches;
        what is left out stays as it is. An evaluation often takes more steps than training.
      carry: how the inner optimizer's state passes from task to task: `None`, `"mean"` or
        `"serial"`.
      differentiates_steps: whether the parameters of every step carry a meta-gradient, or only
        the final ones (implicit differentiation).
      forward: whether forward mode crosses adaptation as well.
      optimizer: the inner optimizer whose update the meta-gradient differentiates, or `None`.

    Example, three times as many steps as in training:

    >>> import jax, jax.numpy as jnp, optax, metajax
    >>> loss = lambda params, batch, rng: (jnp.mean((params - batch) ** 2), {})
    >>> learner = metajax.maml(loss, optax.sgd(0.1), optax.adam(1e-3), num_steps=1)
    >>> adapt = learner.inner.rebuild(num_steps=3)
    >>> _, info = adapt.apply(metajax.MetaParams(jnp.zeros(())), jnp.ones(5), jax.random.key(0))
    >>> info.loss.shape
    (3,)
    """

    init: Callable[[Params], tuple[PyTree, PyTree]]
    apply: Callable[..., tuple[Params, AdaptInfo]]
    rebuild: Callable[..., Adapt]
    carry: str | None = None
    differentiates_steps: bool = True
    forward: bool = True
    optimizer: Any = None


class Objective(Protocol):
    """A scalar meta-objective of one task; its gradient is the meta-gradient.

    Returns `(value, (metrics, inner_state))`.
    """

    def __call__(
        self,
        adapt: Adapt,
        meta_params: MetaParams,
        episode: Episode,
        rng: Key,
        /,
        *,
        inner_state: PyTree = (),
    ) -> tuple[Array, tuple[Metrics, PyTree]]: ...


for _each in (Stateful, Episode, InnerState, MetaParams, MetaState, AdaptInfo):
    # So `jax.export` can serialize functions of them.
    export.register_namedtuple_serialization(_each, serialized_name=f"metajax.{_each.__name__}")


def split_state(params: Params) -> tuple[Params, PyTree]:
    """The parameters, and the model's state or `()`."""
    return tuple(params) if isinstance(params, Stateful) else (params, ())


def check_integer(what: str, value: Any, minimum: int = 1) -> int:
    """Returns a Python or NumPy integer of at least `minimum`, 0 or 1, as an `int`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        kind = "a positive" if minimum else "a non-negative"
        raise ValueError(f"{what} must be {kind} integer, got {value!r}.")
    return int(value)


def split_key(rng: Key, num: int = 2, what: str = "rng") -> Array:
    """`jax.random.split`, or a `ValueError` where `rng` is not one key."""
    try:
        return jax.random.split(rng, num)
    except (TypeError, ValueError):
        kind = f"{getattr(rng, 'dtype', type(rng).__name__)}{getattr(rng, 'shape', '')}"
        raise ValueError(
            f"{what} must be one key, such as jax.random.key(0), got {kind}."
        ) from None


def equal_chunk(count: int, limit: int) -> int:
    """The largest divisor of `count` within `limit`, or `limit` where that is under half of it.

    Unequal chunks leave a rest, which is compiled and run apart.
    """
    limit = max(min(count, limit), 1)
    equal = next(chunk for chunk in range(limit, 0, -1) if count % chunk == 0)
    return equal if 2 * equal >= limit else limit


def check_function(what: str, fn: Any, arguments: str, remedy: str = "") -> None:
    """Raises `ValueError` unless `fn` can be called with `"a, b, *, c"`, the arguments' names."""
    positional, _, keywords = arguments.partition(", *, ")
    try:
        inspect.signature(fn).bind(
            *positional.split(", "), **dict.fromkeys(keywords.split(", ") if keywords else ())
        )
    except TypeError:
        raise ValueError(f"{what} must be a function ({arguments}){remedy}, got {fn!r}.") from None
    except ValueError:
        pass  # Some built-in functions have no signature.


def as_arrays(what: str, tree: PyTree) -> PyTree:
    """Makes every leaf an array, or says which of them cannot be one."""

    def convert(path, leaf):
        try:
            # NumPy reads some texts as types.
            return jnp.asarray(object() if isinstance(leaf, str | bytes) else leaf)
        except TypeError:
            raise ValueError(
                f"{what}{jax.tree_util.keystr(path)} is {type(leaf).__name__}, but every leaf must "
                "be an array or a number."
            ) from None

    return jax.tree_util.tree_map_with_path(convert, tree)


def num_numbers(batch: Batch) -> int:
    """How many numbers a batch holds."""
    return sum(jnp.size(leaf) for leaf in jax.tree.leaves(batch))


def strongly_typed(tree: PyTree) -> PyTree:
    """Arrays of definite types: a weak one turns strong in an update, which compiles twice."""
    return jax.tree.map(lambda x: x if _is_key(x) else jnp.asarray(x, jnp.result_type(x)), tree)


def split_inner(inner_state: PyTree) -> InnerState:
    """The state of the inner optimizer and that of the model, each `()` where there is none."""
    return inner_state if isinstance(inner_state, InnerState) else InnerState(inner_state, ())


def join_inner(optimizer: PyTree, model: PyTree) -> PyTree:
    """What `split_inner` splits."""
    return optimizer if same_structure(model, ()) else InnerState(optimizer, model)


def named_leaves(tree: PyTree, root: str = "") -> dict[str, Any]:
    """Every leaf of a tree, by its path from `root`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {root + jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def leaf_shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """The shape of every leaf, by its path."""
    return {name: jnp.shape(leaf) for name, leaf in named_leaves(tree).items()}


def leading_size(root: str, tree: PyTree, each: str, remedy: str = "") -> int:
    """The size of the leading axis, which all arrays of a tree must share.

    Args:
      root: the name of the tree.
      tree: arrays `[size, ...]`.
      each: what an entry of the axis is, in the singular.
      remedy: what to do about a scalar.

    Raises:
      ValueError: for a scalar, for arrays of different sizes, and if there is nothing.
    """
    sizes = {name: jnp.shape(leaf)[:1] for name, leaf in named_leaves(tree, root).items()}
    first = next(iter(sizes), root)
    for name, size in sizes.items():
        if not size:
            raise ValueError(
                f"{name} is a scalar, but every array needs a leading axis of {each}s.{remedy}"
            )
        if size != sizes[first]:
            raise ValueError(
                f"{name} has {size[0]} {each}s on its leading axis, {first} has "
                f"{sizes[first][0]}; every array needs the same number of {each}s."
            )
    if not any(sizes.values()) or sizes[first] == (0,):
        raise ValueError(f"there are no {each}s in {root}: it needs at least one.")
    return sizes[first][0]


def inexact_leaves(leaves: list[Any]) -> dict[int, Any]:
    """The real and complex arrays of a list, by their places."""
    return {i: x for i, x in enumerate(leaves) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)}


def squared_distance(a: Params, b: Params) -> Array | float:
    """The sum of the squared differences of two trees."""
    return sum(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum((x - y) ** 2), a, b)), start=0.0)


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def same_structure(a: PyTree, b: PyTree) -> bool:
    """Whether two trees differ in their leaves only."""
    structures: list[Any] = [jax.tree.structure(a), jax.tree.structure(b)]
    return structures[0] == structures[1]
