"""Settings of supervised meta-learning, and the algorithms by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import optax
from jax.sharding import Mesh

import metajax
from experiments.settings import Training, UsageError, setting
from metajax import nn


class Parts(NamedTuple):
    """The parts that all algorithms take, besides the settings of each.

    Attributes:
      loss: `(params, batch, rng) -> (scalar, metrics)`.
      inner: the inner optimizer.
      outer: the outer optimizer.
      head: `parameter path -> whether it belongs to the head`.
      features: `(params, x) -> the input of the head`, for algorithms with another head.
      options: the number of steps and `metajax.Options`.
    """

    loss: metajax.LossFn
    inner: Any
    outer: optax.GradientTransformation
    head: Callable[..., bool]
    features: Callable[..., Any] | None
    options: dict[str, Any]


def _exact(s: Any) -> metajax.MetaGradient:
    # Both are exact. For several steps `mixed_mode` stores only the parameters of each, which is
    # faster for convolutions, too.
    return metajax.mixed_mode() if s.num_steps > 1 else metajax.second_order()


# Every algorithm by its public constructor.
ALGORITHMS: dict[str, Callable[[Any, Parts], metajax.MetaLearner]] = {
    "maml": lambda s, p: metajax.maml(
        p.loss, p.inner, p.outer, meta_gradient=_exact(s), **p.options
    ),
    "fomaml": lambda s, p: metajax.fomaml(
        p.loss, p.inner, p.outer, tail=None if s.tail == "none" else s.tail, **p.options
    ),
    "reptile": lambda s, p: metajax.reptile(p.loss, p.inner, p.outer, **p.options),
    "imaml": lambda s, p: metajax.imaml(
        p.loss, p.inner, p.outer, proximal=s.proximal, cg_steps=s.cg_steps, **p.options
    ),
    "meta_sgd": lambda s, p: metajax.meta_sgd(
        p.loss,
        p.outer,
        learning_rate=s.inner_learning_rate,
        meta_gradient=_exact(s),
        **p.options,
    ),
    **dict.fromkeys(
        ("meta_curvature", "alfa"),
        lambda s, p: metajax.maml(p.loss, p.inner, p.outer, meta_gradient=_exact(s), **p.options),
    ),
    "anil": lambda s, p: metajax.anil(
        p.loss, p.inner, p.outer, head=p.head, meta_gradient=_exact(s), **p.options
    ),
    "boil": lambda s, p: metajax.boil(
        p.loss, p.inner, p.outer, head=p.head, meta_gradient=_exact(s), **p.options
    ),
    "maml_plus_plus": lambda s, p: metajax.maml_plus_plus(
        p.loss,
        p.inner,
        p.outer,
        annealed_updates=s.annealed_updates,
        first_order_updates=s.first_order_updates,
        **p.options,
    ),
}


# The algorithms whose inner optimizer is learned: `(step size, steps) -> inner optimizer`.
LEARNED: dict[str, Callable[[float, int], metajax.LearnedOptimizer]] = {
    "maml_plus_plus": metajax.learned_per_step_sizes,
    "meta_curvature": lambda rate, num_steps: metajax.meta_curvature(rate),
    "alfa": metajax.alfa,
}

# The outer optimizers: `(settings, step size or schedule) -> optax transformation`.
OUTER_OPTIMIZERS: dict[str, Callable[[Any, Any], optax.GradientTransformation]] = {
    "sgd": lambda s, rate: optax.sgd(rate),
    "adam": lambda s, rate: optax.adam(rate, eps=s.outer_epsilon),
}


@dataclasses.dataclass(frozen=True)
class Supervised(Training):
    """Supervised meta-learning."""

    algorithm: str = setting(
        "maml",
        "The meta-learning algorithm.",
        choices=tuple(ALGORITHMS),
    )
    shots: int = setting(
        10, "Support examples per task (regression) or class (classification).", least=1
    )
    queries: int = setting(
        10, "Query examples per task (regression) or class in training.", least=0
    )
    inner_optimizer: str = setting("sgd", "Inner optimizer.", choices=("sgd", "adam"))
    inner_batch: int = setting(0, "Support examples per inner step; 0: all of them.", least=0)
    batches: str = setting(
        "cycle",
        "How --inner_batch examples are drawn: through all of them in turn, or anew.",
        choices=("cycle", "replacement"),
    )
    carry: str = setting(
        "none",
        "How the inner optimizer's state passes from task to task.",
        choices=("none", "mean", "serial"),
    )
    tail: str = setting(
        "none",
        "The outer gradient of fomaml: the gradient of the query loss (none), or the last update, "
        "on a mini-batch of the support (shared) or on the query (separate).",
        choices=("none", "shared", "separate"),
        only={"algorithm": ("fomaml",)},
    )
    outer_optimizer: str = setting("adam", "Outer optimizer.", choices=tuple(OUTER_OPTIMIZERS))
    outer_epsilon: float = setting(
        1e-8, "Epsilon of an outer Adam.", least=0.0, only={"outer_optimizer": ("adam",)}
    )
    clip: float = setting(0.0, "Bound on every entry of the meta-gradient; 0: none.", least=0.0)
    annealed_updates: int = setting(
        0,
        "Meta-updates until only the last step counts.",
        least=0,
        only={"algorithm": ("maml_plus_plus",)},
    )
    first_order_updates: int = setting(
        0,
        "Meta-updates of first order at the start.",
        least=0,
        only={"algorithm": ("maml_plus_plus",)},
    )
    cg_steps: int = setting(
        5, "Conjugate-gradient iterations.", least=1, only={"algorithm": ("imaml",)}
    )
    proximal: float = setting(
        2.0, "Pull towards the initialization.", least=0.0, only={"algorithm": ("imaml",)}
    )

    @property
    def loss_scale(self) -> float | None:
        """The factor on the gradient of the mean loss before the outer optimizer; `None` for 1."""
        return None

    def check(self) -> None:
        super().check()
        learned = ("meta_sgd", *LEARNED)
        if self.algorithm in learned and self.inner_optimizer != "sgd":
            raise UsageError(f"--inner_optimizer: {self.algorithm} is SGD with learned steps.")
        if self.algorithm in ("reptile", "imaml") and self.num_steps == 0:
            raise UsageError(f"--num_steps=0: {self.algorithm} needs at least one step.")
        if self.algorithm == "imaml" and self.inner_batch:
            raise UsageError("--inner_batch: imaml takes its steps on the whole support.")
        for name, support in self.support_sizes().items():
            if getattr(self, name) > support:
                raise UsageError(
                    f"--{name}={getattr(self, name)} is more than the {support} examples of a "
                    "support set."
                )
        if self.queries == 0 and self.algorithm != "reptile" and self.tail != "shared":
            raise UsageError(f"--queries=0: {self.algorithm} learns from query examples.")
        if self.tail != "none" and (self.algorithm != "fomaml" or self.num_steps == 0):
            raise UsageError(f"--tail={self.tail} is for fomaml with at least one step.")

    def unused(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        if not any(getattr(self, name) for name in self.support_sizes()):
            yield "every inner step takes the whole support", ("batches",)
        if not self.num_steps:
            yield "training takes no inner steps", ("inner_batch", "carry")
        if self.num_steps < 2:
            yield "there is no step before the last", ("annealed_updates",)
        if self.carry == "serial":
            yield "the tasks run one after another", ("task_chunk",)
        if self.inner_optimizer == "sgd":
            yield "SGD has no state to pass on", ("carry",)
        yield from super().unused()

    def support_sizes(self) -> dict[str, int]:
        """The examples that inner batches are drawn from, by the name of the batch's size."""
        return {"inner_batch": self.shots}


def make_learner(
    settings: Any,
    loss: metajax.LossFn,
    mesh: Mesh | None,
    *,
    inner: Any = None,
    head: Callable[..., bool] = nn.is_head,
    features: Callable[..., Any] | None = None,
) -> metajax.MetaLearner:
    """The meta-learner that the settings name."""
    options = {
        "num_steps": settings.num_steps,
        "batches": make_batches(settings, settings.inner_batch),
        "carry": None if settings.carry == "none" else settings.carry,
        "task_chunk": settings.task_chunk or None,
        "mesh": mesh,
    }
    inner = make_inner_optimizer(settings) if inner is None else inner
    parts = Parts(loss, inner, make_outer_optimizer(settings), head, features, options)
    return ALGORITHMS[settings.algorithm](settings, parts)


def make_batches(settings: Any, inner_batch: int) -> Any:
    """The batches of the inner steps."""
    if not inner_batch:
        return metajax.full_batch()
    draw = metajax.cycle if settings.batches == "cycle" else metajax.replacement
    return draw(inner_batch)


def make_inner_optimizer(settings: Any) -> Any:
    """The inner optimizer of all parameters."""
    rate = settings.inner_learning_rate
    if settings.algorithm in LEARNED:
        return LEARNED[settings.algorithm](rate, max(settings.num_steps, 1))
    if settings.inner_optimizer == "adam":
        # The authors of Reptile use beta1 = 0; eps_root makes the update differentiable.
        exact = settings.algorithm not in ("fomaml", "reptile")
        return optax.adam(rate, b1=0.0, eps_root=1e-8 if exact else 0.0)
    return optax.sgd(rate)


def make_schedule(settings: Any, value: float) -> float | optax.Schedule:
    """The schedule of `value` over the meta-updates, by `--outer_schedule`."""
    if settings.outer_schedule == "linear":
        return optax.linear_schedule(value, 0.0, settings.num_meta_steps)
    if settings.outer_schedule == "cosine":
        return optax.cosine_decay_schedule(value, settings.num_meta_steps, alpha=0.01)
    if settings.outer_schedule == "halved":
        return optax.exponential_decay(value, 2_000, 0.5, staircase=True)
    return value


def make_outer_optimizer(settings: Any) -> optax.GradientTransformation:
    """The outer step, on the gradient of the mean of the tasks' mean losses."""
    rate = make_schedule(settings, settings.outer_learning_rate)
    before = [] if settings.loss_scale is None else [optax.scale(settings.loss_scale)]
    if settings.clip:
        before.append(optax.clip(settings.clip))
    step = OUTER_OPTIMIZERS[settings.outer_optimizer](settings, rate)
    return optax.chain(*before, step) if before else step
