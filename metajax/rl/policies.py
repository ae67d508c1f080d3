"""Distributions of actions and the policies of the papers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen

from metajax.base import Array, Key, Params, check_function, check_integer
from metajax.rl.arguments import check_number, check_policy
from metajax.rl.base import Policy, shown

MIN_LOG_STD = math.log(1e-6)
PRECISION = jax.lax.Precision.HIGHEST  # a GPU's fast products are too coarse for curvature


class Normal(NamedTuple):
    """Independent normal distributions; probabilities are joint over the last axis.

    Attributes:
      mean: `[..., action_size]`.
      log_std: of the same shape.
    """

    mean: Array
    log_std: Array

    def sample(self, rng: Key) -> Array:
        noise = jax.random.normal(rng, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(self.log_std) * noise

    def log_prob(self, action: Array) -> Array:
        if jnp.shape(action)[-1:] != jnp.shape(self.mean)[-1:]:
            raise ValueError(
                f"Normal: the action is {shown(action)}, but the mean is {shown(self.mean)}: their "
                "last axes must be equal."
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
    """Discrete actions.

    Attributes:
      logits: `[..., actions]`.
    """

    logits: Array

    def sample(self, rng: Key) -> Array:
        return jax.random.categorical(rng, self.logits)

    def log_prob(self, action: Array) -> Array:
        integer = jnp.issubdtype(jnp.result_type(action), jnp.integer)
        if not integer or jnp.shape(action) != jnp.shape(self.logits)[:-1]:
            raise ValueError(
                f"Categorical: the action is {shown(action)}, but must be an integer for each of "
                f"the logits {shown(self.logits)}, without their last axis."
            )
        log_probs = jax.nn.log_softmax(self.logits)
        return jnp.take_along_axis(log_probs, action[..., None], axis=-1)[..., 0]

    def kl(self, other: Categorical) -> Array:
        """KL(self || other)."""
        ours, theirs = jax.nn.log_softmax(self.logits), jax.nn.log_softmax(other.logits)
        return jnp.sum(jnp.exp(ours) * (ours - theirs), axis=-1)

    def entropy(self) -> Array:
        log_probs = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


class GaussianMLP(linen.Module):
    """The papers' policy: a mean by a multi-layer perceptron, a standard deviation of its own.

    Attributes:
      action_size: length of an action.
      hidden: widths of the hidden layers.
      activation: their nonlinearity.
      init_log_std: where the logarithm of the standard deviation starts; it is one parameter per
        action dimension, the same for all observations.
      min_log_std: its least value. Where it is reached no gradient pushes it further.

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
        def dense(features):
            init = linen.initializers.xavier_uniform()
            return linen.Dense(features, kernel_init=init, precision=PRECISION)

        # One axis of rows: XLA copies what the kernels' gradients contract over several of.
        x = observations.reshape(-1, observations.shape[-1])
        for width in self.hidden:
            x = self.activation(dense(width)(x))
        mean = dense(self.action_size)(x).reshape(*observations.shape[:-1], self.action_size)
        log_std = self.param(
            "log_std", linen.initializers.constant(self.init_log_std), (self.action_size,)
        )
        log_std = jnp.maximum(log_std, self.min_log_std)
        return Normal(mean, jnp.broadcast_to(log_std, mean.shape))


def with_context(
    init: Callable[[Key, Array], Params], apply: Policy, context_size: int
) -> tuple[Callable[[Key, Array], Params], Policy]:
    """A policy that also sees parameters of its own, which adaptation may move alone.

    The context starts at 0 and is appended to every observation. To adapt nothing else, make the
    inner optimizer `metajax.adapting(optimizer, rl.is_context)`.

    Args:
      init: `(rng, observation) -> params` of a policy.
      apply: the policy.
      context_size: how many numbers are appended.

    Returns:
      `init` and `apply` of a policy with the parameters `{"context": ..., "policy": ...}`.

    Raises:
      ValueError: for arguments of the wrong kind.

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      appendix C.2; Zintgraf et al., `CAVIA <https://arxiv.org/abs/1810.03642>`_, 2019.
    """
    check_function("with_context: init", init, "rng, observation", " such as model.init")
    check_policy("with_context", apply)
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


def is_context(path: tuple[Any, ...]) -> bool:
    """Whether a parameter of a policy `with_context` is its context."""
    return jax.tree_util.keystr(path[:1]) == "['context']"
