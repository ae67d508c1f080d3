"""Regression on sine waves: the toy problem of the MAML and Reptile papers."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.base import Array, Episode, Key, check_integer, split_key

Range = tuple[float, float]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=(),
    meta_fields=(
        "shots",
        "queries",
        "amplitude",
        "phase",
        "x_range",
        "support_range",
        "query_grid",
        "informed",
    ),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Sinusoid:
    """Sine waves of random amplitude and phase.

    A task is the function `y(x) = a sin(x - b)` with `a ~ U(amplitude)` and `b ~ U(phase)`, in
    radians. Its support and its query are pairs `(x, y)` with `x ~ U(x_range)`.

    Attributes:
      shots: support points per task, `K`.
      queries: query points per task; 0 for algorithms that use the support only.
      amplitude: the range `(low, high)` of the amplitude.
      phase: the range of the phase, in radians.
      x_range: the range of the inputs.
      support_range: the range of the support's inputs, by default `x_range`. A support in one half
        of `x_range` shows what the learner predicts in the other half (figure 2 of the MAML paper).
      query_grid: whether the query inputs are equally spaced over `x_range` instead of random. The
        error is then measured evenly, for evaluation.
      informed: whether the inputs are `(x, a, b)` instead of `x`, for an oracle.

    Raises:
      ValueError: if `shots` is not a positive integer or `queries` not a non-negative one, or if a
        range is not a tuple `(low, high)` of finite numbers with `low <= high`.

    Example:
      >>> import jax
      >>> x, y = Sinusoid(shots=5).sample(jax.random.key(0)).support
      >>> x.shape, y.shape
      ((5, 1), (5, 1))

    References:
      Finn et al., Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks, 2017,
      section 5.1; Nichol et al., On First-Order Meta-Learning Algorithms, 2018, section 4.
    """

    shots: int = 10
    queries: int = 10
    amplitude: Range = (0.1, 5.0)
    phase: Range = (0.0, math.pi)
    x_range: Range = (-5.0, 5.0)
    support_range: Range | None = None
    query_grid: bool = False
    informed: bool = False

    def __post_init__(self) -> None:
        check_integer("shots", self.shots)
        check_integer("queries", self.queries, minimum=0)
        for name in ("amplitude", "phase", "x_range", "support_range"):
            value = getattr(self, name)
            if name == "support_range" and value is None:
                continue
            # Settings are static under `jit` and must be hashable, so no lists and no arrays.
            if not (
                isinstance(value, tuple)
                and len(value) == 2
                and all(isinstance(end, int | float | np.integer | np.floating) for end in value)
                and -math.inf < value[0] <= value[1] < math.inf
            ):
                raise ValueError(
                    f"{name} must be a tuple (low, high) of finite numbers with low <= high, got "
                    f"{value!r}"
                )

    @classmethod
    def finn2017(cls, shots: int = 10, **settings: Any) -> Sinusoid:
        """The tasks of Finn et al. 2017, section 5.1: phases in [0, pi], as many queries as shots.

        Args:
          shots: support points, and query points unless `queries` is given.
          **settings: other values of attributes.

        Example:
          >>> Sinusoid.finn2017(5, queries=100, query_grid=True).queries
          100
        """
        return dataclasses.replace(
            cls(shots=shots, queries=shots, phase=(0.0, math.pi)), **settings
        )

    @classmethod
    def nichol2018(cls, shots: int = 10, **settings: Any) -> Sinusoid:
        """The tasks of Nichol et al. 2018, section 4: phases in [0, 2 pi], errors on 50 points.

        The paper adds the phase and this class subtracts it, but over a full period the tasks are
        the same. The paper's loss is an integral over [-5, 5], evaluated on 50 equally spaced
        points.

        Args:
          shots: support points.
          **settings: other values of attributes.

        Example:
          >>> Sinusoid.nichol2018().queries
          50
        """
        return dataclasses.replace(
            cls(shots=shots, queries=50, phase=(0.0, 2 * math.pi), query_grid=True), **settings
        )

    def sample(self, rng: Key) -> Episode:
        """Draws one sine wave.

        Args:
          rng: a key.

        Returns:
          An episode of pairs `(x, y)`, with arrays `[shots, 1]` in the support and `[queries, 1]`
          in the query; if `informed`, `x` is `[shots, 3]` and `[queries, 3]`.
        """
        amplitude_rng, phase_rng, support_rng, query_rng = split_key(rng, 4)
        amplitude = _uniform(amplitude_rng, (), self.amplitude)
        phase = _uniform(phase_rng, (), self.phase)
        support = _uniform(support_rng, (self.shots, 1), self.support_range or self.x_range)
        if self.query_grid:
            query = jnp.linspace(*self.x_range, self.queries)[:, None]
        else:
            query = _uniform(query_rng, (self.queries, 1), self.x_range)

        def label(x: Array) -> tuple[Array, Array]:
            y = amplitude * jnp.sin(x - phase)
            if not self.informed:
                return x, y
            known = jnp.broadcast_to(jnp.stack([amplitude, phase]), (len(x), 2))
            return jnp.concatenate([x, known], axis=1), y

        return Episode(label(support), label(query))


def _uniform(rng: Key, shape: tuple[int, ...], between: Range) -> Array:
    low, high = between
    return jax.random.uniform(rng, shape, minval=low, maxval=high)
