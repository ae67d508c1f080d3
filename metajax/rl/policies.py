"""Action distributions and policies."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen

from metajax.base import Array, Key, Params, check_function, check_integer, check_number, describe
from metajax.rl.arguments import check_policy
from metajax.rl.base import Policy, Recurrent

MIN_LOG_STD = math.log(1e-6)
PRECISION = jax.lax.Precision.HIGHEST  # a GPU's default is too coarse for curvature


class Normal(NamedTuple):
    """A normal distribution with independent components along the last axis.

    Attributes:
      mean: `[..., action_size]`.
      log_std: logarithm of the standard deviation, `[..., action_size]`.
    """

    mean: Array
    log_std: Array

    def sample(self, rng: Key) -> Array:
        noise = jax.random.normal(rng, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(self.log_std) * noise

    def log_prob(self, action: Array) -> Array:
        if jnp.shape(action)[-1:] != jnp.shape(self.mean)[-1:]:
            raise ValueError(
                f"Normal: action and mean must have the same last axis, but they are "
                f"{describe(action)} and {describe(self.mean)}."
            )
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return jnp.sum(-0.5 * z**2 - self.log_std - 0.5 * math.log(2 * math.pi), axis=-1)

    def kl(self, other: Normal) -> Array:
        """KL(self || other)."""
        variance, other_variance = jnp.exp(2 * self.log_std), jnp.exp(2 * other.log_std)
        square = (self.mean - other.mean) ** 2
        terms = other.log_std - self.log_std + 0.5 * (variance + square) / other_variance - 0.5
        return jnp.sum(terms, axis=-1)

    def entropy(self) -> Array:
        return jnp.sum(self.log_std + 0.5 * math.log(2 * math.pi * math.e), axis=-1)


class Categorical(NamedTuple):
    """A distribution over discrete actions.

    Attributes:
      logits: `[..., action_size]`, unnormalized log-probabilities.
    """

    logits: Array

    def sample(self, rng: Key) -> Array:
        return jax.random.categorical(rng, self.logits)

    def log_prob(self, action: Array) -> Array:
        integer = jnp.issubdtype(jnp.result_type(action), jnp.integer)
        if not integer or jnp.shape(action) != jnp.shape(self.logits)[:-1]:
            raise ValueError(
                "Categorical: actions must be integers of the logits' shape without its last axis, "
                f"but the action is {describe(action)} and the logits are {describe(self.logits)}."
            )
        log_probs = jax.nn.log_softmax(self.logits)
        return jnp.take_along_axis(log_probs, action[..., None], axis=-1)[..., 0]

    def kl(self, other: Categorical) -> Array:
        """KL(self || other)."""
        ours, theirs = jax.nn.log_softmax(self.logits), jax.nn.log_softmax(other.logits)
        # An action of probability 0 adds nothing, whatever its logit.
        possible = ours > -jnp.inf
        ratio = jnp.where(possible, ours, 0) - jnp.where(possible, theirs, 0)
        return jnp.sum(jnp.exp(ours) * ratio, axis=-1)

    def entropy(self) -> Array:
        log_probs = jax.nn.log_softmax(self.logits)
        finite = jnp.where(log_probs > -jnp.inf, log_probs, 0)
        return -jnp.sum(jnp.exp(log_probs) * finite, axis=-1)


class GaussianMLP(linen.Module):
    """The policy of the papers: a normal distribution whose mean is a multi-layer perceptron.

    The logarithm of the standard deviation is a parameter for each action dimension. It does not
    depend on the observation.

    Attributes:
      action_size: length of an action.
      hidden: widths of the hidden layers.
      activation: nonlinearity of the hidden layers.
      init_log_std: initial logarithm of the standard deviation.
      min_log_std: its lower bound. A parameter below the bound receives no gradient.

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from metajax import rl
    >>> policy = rl.GaussianMLP(action_size=2)
    >>> params = policy.init(jax.random.key(0), jnp.zeros(3))
    >>> policy.apply(params, jnp.zeros((7, 3))).mean.shape
    (7, 2)

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      section 5.3 (two hidden layers of 100 ReLU units).
    """

    action_size: int
    hidden: tuple[int, ...] = (100, 100)
    activation: Callable[[Array], Array] = linen.relu
    init_log_std: float = 0.0
    min_log_std: float = MIN_LOG_STD

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("GaussianMLP: action_size", self.action_size)
        if not isinstance(self.hidden, tuple | list):
            raise ValueError(f"GaussianMLP: hidden must be a tuple of widths, got {self.hidden!r}.")
        for width in self.hidden:
            check_integer("GaussianMLP: a width of hidden", width)
        check_number("GaussianMLP: init_log_std", self.init_log_std, "(-inf, inf)")
        check_number("GaussianMLP: min_log_std", self.min_log_std, "[-inf, inf)")

    @linen.compact
    def __call__(self, observations: Array) -> Normal:
        mean = _perceptron(observations, self.hidden, self.action_size, self.activation)
        log_std = self.param(
            "log_std", linen.initializers.constant(self.init_log_std), (self.action_size,)
        )
        # At the bound `maximum` would halve the gradient.
        log_std = jnp.where(log_std >= self.min_log_std, log_std, self.min_log_std)
        return Normal(mean, jnp.broadcast_to(log_std, mean.shape))


class CategoricalMLP(linen.Module):
    """A policy for discrete actions: the logits are a multi-layer perceptron.

    Attributes:
      action_size: the number of actions.
      hidden: widths of the hidden layers.
      activation: nonlinearity of the hidden layers.

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from metajax import rl
    >>> policy = rl.CategoricalMLP(action_size=2)
    >>> params = policy.init(jax.random.key(0), jnp.zeros(4))
    >>> policy.apply(params, jnp.zeros((7, 4))).logits.shape
    (7, 2)
    """

    action_size: int
    hidden: tuple[int, ...] = (100, 100)
    activation: Callable[[Array], Array] = linen.relu

    @linen.compact
    def __call__(self, observations: Array) -> Categorical:
        return Categorical(
            _perceptron(observations, self.hidden, self.action_size, self.activation)
        )


def _perceptron(
    observations: Array,
    hidden: tuple[int, ...],
    outputs: int,
    activation: Callable[[Array], Array],
) -> Array:
    def dense(features: int) -> linen.Dense:
        init = linen.initializers.xavier_uniform()
        return linen.Dense(features, kernel_init=init, precision=PRECISION)

    # A single axis of rows: with several, XLA makes copies for the kernels' gradients.
    x = observations.reshape(-1, observations.shape[-1])
    for width in hidden:
        x = activation(dense(width)(x))
    return dense(outputs)(x).reshape(*observations.shape[:-1], outputs)


def with_context(
    init: Callable[[Key, Array], Params], apply: Policy, context_size: int
) -> tuple[Callable[[Key, Array], Params], Policy]:
    """Appends a context vector, a part of the parameters, to every observation of a policy.

    The context starts at 0. To adapt the context alone, use the inner optimizer
    `metajax.adapt_only(optimizer, rl.is_context)`.

    Args:
      init: `(rng, observation) -> params`, of the policy without a context.
      apply: the policy without a context.
      context_size: length of the context.

    Returns:
      `init` and `apply` of the policy with a context; its parameters are
      `{"context": [context_size], "policy": ...}`.

    Raises:
      ValueError: for arguments of the wrong kind.

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from metajax import rl
    >>> model = rl.GaussianMLP(action_size=2)
    >>> init, policy = rl.with_context(model.init, model.apply, context_size=5)
    >>> params = init(jax.random.key(0), jnp.zeros(3))
    >>> params["context"].shape, policy(params, jnp.zeros((7, 3))).mean.shape
    ((5,), (7, 2))

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      appendix C.2; Zintgraf et al., `CAVIA <https://arxiv.org/abs/1810.03642>`_, 2019.
    """
    check_function("with_context: init", init, "rng, observation", " such as model.init")
    check_plain("with_context", apply)
    context_size = check_integer("with_context: context_size", context_size)

    def extended(context: Array, observations: Array) -> Array:
        shape = (*observations.shape[:-1], context_size)
        return jnp.concatenate([observations, jnp.broadcast_to(context, shape)], axis=-1)

    def init_with_context(rng: Key, observation: Array) -> Params:
        context = jnp.zeros(context_size, observation.dtype)
        return {"context": context, "policy": init(rng, extended(context, observation))}

    def apply_with_context(params: Params, observations: Array) -> Any:
        return apply(params["policy"], extended(params["context"], observations))

    return init_with_context, apply_with_context


def with_memory(
    init: Callable[[Key, Array], Params], apply: Policy, memory_size: int
) -> tuple[Callable[[Key, Array], Params], Recurrent]:
    r"""Appends a memory, the state of a GRU that reads all observations, to those of a policy.

    .. math:: h_t = \mathrm{GRU}(h_{t-1}, o_t), \quad a_t \sim \pi(o_t, h_t)

    The memory is 0 at the start of a trajectory.

    Args:
      init: `(rng, observation) -> params`, of the policy without a memory.
      apply: the policy without a memory.
      memory_size: units of the GRU.

    Returns:
      `init` and the `Recurrent` policy with a memory; its parameters are
      `{"memory": ..., "policy": ...}`.

    Raises:
      ValueError: for arguments of the wrong kind, and for a policy that has a memory.

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from metajax import rl
    >>> model = rl.CategoricalMLP(action_size=2)
    >>> init, policy = rl.with_memory(model.init, model.apply, memory_size=16)
    >>> params = init(jax.random.key(0), jnp.zeros(3))
    >>> policy(params, jnp.zeros((7, 10, 3))).logits.shape  # of 7 trajectories of 10 steps
    (7, 10, 2)

    References:
      Cho et al., `Learning Phrase Representations using RNN Encoder-Decoder
      <https://arxiv.org/abs/1406.1078>`_, 2014, for the GRU; Duan et al., `RL2
      <https://arxiv.org/abs/1611.02779>`_, 2016, for its use.
    """
    check_function("with_memory: init", init, "rng, observation", " such as model.init")
    check_plain("with_memory", apply)
    memory_size = check_integer("with_memory: memory_size", memory_size)
    cell = linen.GRUCell(memory_size)

    def extended(memory: Array, observations: Array) -> Array:
        return jnp.concatenate([observations, memory], axis=-1)

    def start(params: Params, shape: tuple[int, ...]) -> Array:
        kernel = jax.tree.leaves(params["memory"])[0]
        return jnp.zeros((*shape, memory_size), kernel.dtype)

    def init_with_memory(rng: Key, observation: Array) -> Params:
        memory_rng, rng = jax.random.split(rng)
        memory = jnp.zeros(memory_size, observation.dtype)
        return {
            "memory": cell.init(memory_rng, memory, observation),
            "policy": init(rng, extended(memory, observation)),
        }

    def step(params: Params, memory: Array, observations: Array) -> tuple[Array, Any]:
        with jax.default_matmul_precision("highest"):  # as PRECISION
            memory, _ = cell.apply(params["memory"], memory, observations)
        return memory, apply(params["policy"], extended(memory, observations))

    return init_with_memory, Recurrent(start, step)


def check_plain(what: str, policy: Policy) -> None:
    """Raises `ValueError` unless `policy` is a function, without a memory."""
    if isinstance(policy, Recurrent):
        raise ValueError(f"{what}: the policy has a memory already: with_memory comes last.")
    check_policy(what, policy)


def is_context(path: tuple[Any, ...]) -> bool:
    """Whether a path in the parameters of a policy from `with_context` is that of the context."""
    return jax.tree_util.keystr(path[:1]) == "['context']"
