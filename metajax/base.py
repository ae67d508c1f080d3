"""The types of the library, such as episodes and meta-learners, and helpers for them."""

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

    Any function `(params, batch, rng) -> (scalar loss, pytree of metrics)` will do, whatever
    library the model comes from. If the model has state, `params` is a `Stateful`, and a loss that
    changes the state returns the new state as a third value.
    """

    def __call__(self, params: Params, batch: Batch, rng: Key, /) -> tuple[Any, ...]: ...


class Stateful(NamedTuple):
    """Parameters together with state that the model writes, such as batch statistics.

    Pass it to `MetaLearner.init` in place of the parameters. The loss receives it and returns
    `(scalar, metrics, new state)`. No gradient flows through the state, and no optimizer updates
    it. Every task starts from the state in `MetaState` and passes it through its inner steps and
    its query loss. The final states of the tasks are averaged; integers and keys are taken from
    the first task. Adapted parameters are `Stateful` too, and so is what a metric receives.

    Attributes:
      params: the parameters, which are adapted and meta-learned.
      state: the model's state, any pytree.

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
    """The carried state of a learner whose model has state, see `Stateful`.

    Attributes:
      optimizer: the inner optimizer's state; `()` if each task starts from a fresh one.
      model: the model's state.
    """

    optimizer: PyTree
    model: PyTree


class Episode(NamedTuple):
    """The data of one task or, with a leading task axis on every leaf, of a meta-batch of tasks.

    Attributes:
      support: the data for adaptation, leaves `[shots, ...]`, in a meta-batch
        `[tasks, shots, ...]`.
      query: the data that score the adapted parameters, leaves `[queries, ...]`, in a meta-batch
        `[tasks, queries, ...]`.

    Example, one regression task of five support and ten query examples:

    >>> import jax.numpy as jnp, metajax
    >>> episode = metajax.Episode(
    ...     support=(jnp.ones((5, 2)), jnp.ones(5)), query=(jnp.ones((10, 2)), jnp.ones(10)))
    """

    support: Batch
    query: Batch


class MetaParams(NamedTuple):
    """The parameters that the outer loop learns.

    Attributes:
      params: the initialization from which every task adapts.
      inner: learned hyper-parameters of the inner optimizer; `()` if there are none.
    """

    params: Params
    inner: PyTree = ()


class MetaState(NamedTuple):
    """The state of a meta-learner.

    Attributes:
      meta_params: the learned parameters.
      opt_state: the outer optimizer's state.
      inner_state: the inner optimizer's state, carried from one meta-update to the next; `()` if
        each task starts from a fresh one. An `InnerState` if the model has state as well.
      step: the number of meta-updates so far, int32.
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
        leaves are `[tasks, ...]`. The metrics are free; where they include a scalar `objective` or
        `meta_gradient_norm`, `train.fit` reports the meta-step at which it is not finite.
      inner: the inner loop that `update` trains, an `Adapt` or an `rl.InnerLoop`; `None` if there
        is none. `inner.rebuild` makes the same loop with another number of steps.
    """

    init: Callable[[Params], MetaState]
    adapt: Callable[[MetaState, Batch, Key], Params]
    update: Callable[[MetaState, Episode, Key], tuple[MetaState, Metrics]]
    inner: Any = None


class AdaptInfo(NamedTuple):
    """A report of one task's adaptation, stacked over its inner steps.

    Attributes:
      loss: the support loss before each step, `[num_steps]`.
      aux: the loss function's own metrics before each step, leaves `[num_steps, ...]`.
      probe: the probe's outputs, leaves `[num_steps + 1, ...]`; `()` without a probe.
      inner_state: the state for the next task, as in `MetaState`.
      opt_state: the inner optimizer's state after the last step, whatever the carry.
    """

    loss: Array
    aux: Aux
    probe: PyTree
    inner_state: PyTree
    opt_state: PyTree = ()


class Adapt(NamedTuple):
    """An inner loop, as `metajax.inner_loop` builds it.

    Attributes:
      init: `params -> (learned inner parameters, carried inner state)`.
      apply: `(meta_params, support, rng, *, inner_state=(), probe=None) -> (adapted, AdaptInfo)`,
        for one task. `probe(params, step)` is evaluated on the parameters before every step and
        after the last one.
      rebuild: `(*, num_steps, batches, ...) -> Adapt`, the same inner loop with some keyword
        arguments of `inner_loop` changed. Evaluation often takes more steps than training.
      carry: how the inner optimizer's state passes from task to task: `None`, `"mean"` or
        `"serial"`.
      differentiates_steps: whether the parameters after every step carry a meta-gradient, or only
        the final ones (implicit differentiation).
      forward: whether adaptation supports forward-mode differentiation.
      optimizer: the inner optimizer if the meta-gradient differentiates its update, else `None`.
      num_steps: the number of adaptation steps.
      counts: `pytree path -> whether the parameter there counts the inner steps` (`count_steps`),
        which an objective on displacements leaves out.

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
    num_steps: int = 0
    counts: Callable[[tuple[Any, ...]], bool] = lambda path: False


class Objective(Protocol):
    """A scalar meta-objective of one task, whose gradient is the meta-gradient.

    Returns `(value, (metrics, inner_state))`, where `inner_state` is that of `AdaptInfo`.
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
    # `jax.export` serializes functions of registered types only.
    export.register_namedtuple_serialization(_each, serialized_name=f"metajax.{_each.__name__}")


def split_state(params: Params) -> tuple[Params, PyTree]:
    """The parameters and the model's state, which is `()` if there is none."""
    return tuple(params) if isinstance(params, Stateful) else (params, ())


def check_integer(what: str, value: Any, minimum: int = 1) -> int:
    """Returns `value` as an `int` if it is an integer of at least `minimum`, which is 0 or 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        kind = "a positive" if minimum else "a non-negative"
        raise ValueError(f"{what} must be {kind} integer, got {value!r}.")
    return int(value)


def check_kind(what: str, value: Any, kind: type, source: str) -> None:
    """Raises `ValueError` unless `value` is a `kind`; `source` says where to get one."""
    if not isinstance(value, kind):
        name = type(value).__name__
        raise ValueError(f"{what} must be of type {kind.__name__}, {source}; got {name}.")


def describe(value: Any) -> str:
    """One line for an error message: an array's type and shape, or the value itself."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}{list(value.shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else type(value).__name__


def check_number(what: str, value: Any, interval: str) -> None:
    """Raises `ValueError` unless `value` is a number in an interval such as `"(0, 1]"`.

    A scalar array passes, traced or not: its value is never read.
    """
    low, high = map(float, interval[1:-1].split(","))
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        valid = low <= value if interval[0] == "[" else low < value
        valid = valid and (value <= high if interval[-1] == "]" else value < high)
    else:
        valid = isinstance(value, jax.Array | np.ndarray) and value.shape == ()
        valid = valid and value.dtype != bool
    if not valid:
        raise ValueError(f"{what} must be a number in {interval}, got {describe(value)}.")


def split_key(rng: Key, num: int = 2, what: str = "rng") -> Array:
    """`jax.random.split`, with a `ValueError` if `rng` is not a single key."""
    try:
        return jax.random.split(rng, num)
    except (TypeError, ValueError):
        kind = f"{getattr(rng, 'dtype', type(rng).__name__)}{getattr(rng, 'shape', '')}"
        raise ValueError(
            f"{what} must be one key, such as jax.random.key(0), got {kind}."
        ) from None


def check_function(what: str, fn: Any, arguments: str, remedy: str = "") -> None:
    """Raises `ValueError` unless `fn` accepts `arguments`, given by name as in `"a, b, *, c"`."""
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
    """Converts every leaf to an array; the error names a leaf that cannot be converted."""

    def convert(path, leaf):
        try:
            # NumPy would read some strings as names of types.
            return jnp.asarray(object() if isinstance(leaf, str | bytes) else leaf)
        except TypeError:
            raise ValueError(
                f"{what}{jax.tree_util.keystr(path)} is {type(leaf).__name__}, but every leaf must "
                "be an array or a number."
            ) from None

    return jax.tree_util.tree_map_with_path(convert, tree)


def num_numbers(batch: Batch) -> int:
    """The number of array elements in a batch."""
    return sum(jnp.size(leaf) for leaf in jax.tree.leaves(batch))


def strongly_typed(tree: PyTree) -> PyTree:
    """Arrays without weak types, which turn strong in an update and make it compile twice."""

    def strong(x):
        is_key = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return x if is_key else jnp.asarray(x, jnp.result_type(x))

    return jax.tree.map(strong, tree)


def split_inner(inner_state: PyTree) -> InnerState:
    """Splits a carried state into the optimizer's and the model's, each `()` if there is none."""
    return inner_state if isinstance(inner_state, InnerState) else InnerState(inner_state, ())


def join_inner(optimizer: PyTree, model: PyTree) -> PyTree:
    """The inverse of `split_inner`."""
    return optimizer if same_structure(model, ()) else InnerState(optimizer, model)


def named_leaves(
    tree: PyTree, root: str = "", is_leaf: Callable[[Any], bool] | None = None
) -> dict[str, Any]:
    """The leaves of a tree by name, which is `root` followed by the path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf)
    return {root + jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def leaf_types(tree: PyTree) -> dict[str, str]:
    """The types and shapes of the leaves, by path, such as `float32[3]`."""
    return {name: describe(jnp.asarray(leaf)) for name, leaf in named_leaves(tree).items()}


def leaf_shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """The shapes of the leaves, by path."""
    return {name: jnp.shape(leaf) for name, leaf in named_leaves(tree).items()}


def leading_size(root: str, tree: PyTree, each: str, remedy: str = "") -> int:
    """The size of the leading axis, which all arrays of a tree must share.

    Args:
      root: the name of the tree.
      tree: arrays `[size, ...]`.
      each: the name of one entry of the axis, such as `"task"`.
      remedy: a hint for a scalar, appended to the message.

    Raises:
      ValueError: for a scalar, for arrays of different sizes, or if the axis is empty.
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
    """The floating-point and complex entries of a list, by index."""
    return {i: x for i, x in enumerate(leaves) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)}


def squared_distance(a: Params, b: Params) -> Array | float:
    """The squared Euclidean distance of two trees."""
    return sum(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum((x - y) ** 2), a, b)), start=0.0)


def same_structure(a: PyTree, b: PyTree) -> bool:
    """Whether two trees have the same structure."""
    first: Any = jax.tree.structure(a)
    return first == jax.tree.structure(b)
