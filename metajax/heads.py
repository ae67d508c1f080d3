"""Classifiers that a support determines in closed form, on features that the outer loop learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from metajax.base import (
    Adapt,
    Array,
    Batch,
    Key,
    MetaLearner,
    MetaParams,
    Params,
    PyTree,
    Stateful,
    check_function,
    check_integer,
    check_kind,
    check_number,
)
from metajax.inner import inner_loop, start_from
from metajax.learner import meta_learner
from metajax.losses import Apply, check_labels, cross_entropy, unpack, without_padding
from metajax.objectives import query_loss
from metajax.optimizers import LearnedOptimizer, Optimizer


class Head(NamedTuple):
    """A classifier in closed form.

    Attributes:
      init: `() -> hyper-parameters`, a pytree of floats that the outer loop learns; `()` for none.
      fit: `(hyper-parameters, features [examples, size], one_hot [examples, ways]) -> head`, a
        pytree. The rows of padded examples are zero, in features and labels alike.
      logits: `(head, features [examples, size]) -> logits [examples, ways]`.

    Example, the class whose mean has the largest inner product:

    >>> import metajax
    >>> head = metajax.Head(
    ...     init=lambda: (),
    ...     fit=lambda hyper, features, one_hot: one_hot.T @ features,
    ...     logits=lambda sums, features: features @ sums.T)
    """

    init: Callable[[], PyTree]
    fit: Callable[[PyTree, Array, Array], PyTree]
    logits: Callable[[PyTree, Array], Array]


def prototypes() -> Head:
    r"""The nearest class mean: logits :math:`-\|f(x) - c_k\|^2`.

    :math:`c_k` is the mean of the features of the support examples of class :math:`k`.

    Example:

    >>> import jax.numpy as jnp, metajax
    >>> head = metajax.prototypes()
    >>> means = head.fit((), jnp.asarray([[0.0], [2.0], [9.0]]), jnp.eye(2)[jnp.asarray([0, 0, 1])])
    >>> head.logits(means, jnp.asarray([[3.0]])).tolist()
    [[-4.0, -36.0]]

    References:
      Snell et al., `Prototypical Networks for Few-shot Learning
      <https://arxiv.org/abs/1703.05175>`_, 2017, equations 1 and 2.
    """

    def fit(hyper: PyTree, features: Array, one_hot: Array) -> Array:
        counts = jnp.maximum(one_hot.sum(axis=0), 1)
        return one_hot.T @ features / counts[:, None]

    def logits(means: Array, features: Array) -> Array:
        return -jnp.sum((features[:, None] - means[None]) ** 2, axis=-1)

    return Head(lambda: (), fit, logits)


def matching() -> Head:
    r"""Attention over the support: class probabilities :math:`\sum_i a(x, x_i) \, y_i`.

    :math:`a` is the softmax of the cosines of the features of :math:`x` and of all support examples
    :math:`x_i`. This is the paper's model without its full-context embeddings.

    Example:

    >>> import jax, jax.numpy as jnp, metajax
    >>> head = metajax.matching()
    >>> fitted = head.fit((), jnp.eye(2), jnp.eye(2))
    >>> jax.nn.softmax(head.logits(fitted, jnp.asarray([[1.0, 0.0]]))).round(3).tolist()
    [[0.73..., 0.26...]]

    References:
      Vinyals et al., `Matching Networks for One Shot Learning
      <https://arxiv.org/abs/1606.04080>`_, 2016, section 2.1, equation 1.
    """

    def unit(x: Array) -> Array:
        return x / jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)

    def logits(fitted: tuple[Array, Array], features: Array) -> Array:
        support, one_hot = fitted
        cosines = unit(features) @ unit(support).T
        real = one_hot.sum(axis=1) > 0
        attention = jax.nn.softmax(jnp.where(real[None], cosines, -jnp.inf))
        # The small number is for classes without support examples.
        return jnp.log(attention @ one_hot + 1e-12)

    return Head(lambda: (), lambda hyper, features, one_hot: (features, one_hot), logits)


def ridge() -> Head:
    r"""Ridge regression of the one-hot labels: logits :math:`\alpha f(x) W + \beta`.

    .. math::
      W = \operatorname{argmin}_W \|X W - Y\|^2 + \lambda \|W\|^2
        = X^\top (X X^\top + \lambda I)^{-1} Y

    The outer loop learns :math:`\log\lambda`, :math:`\alpha` and :math:`\beta`. The linear system
    is as large as the smaller of the number of examples and the size of the features.

    Example:

    >>> import jax.numpy as jnp, metajax
    >>> head = metajax.ridge()
    >>> fitted = head.fit(head.init(), jnp.eye(2), jnp.eye(2))
    >>> head.logits(fitted, 2 * jnp.eye(2)).round(3).tolist()
    [[1.0, 0.0], [0.0, 1.0]]

    References:
      Bertinetto et al., `Meta-learning with differentiable closed-form solvers
      <https://arxiv.org/abs/1805.08136>`_, 2019 (R2-D2), equations 4 to 6.
    """

    def init() -> dict[str, Array]:
        return {"log_penalty": jnp.zeros(()), "scale": jnp.ones(()), "bias": jnp.zeros(())}

    def fit(hyper: PyTree, x: Array, y: Array) -> PyTree:
        examples, size = x.shape
        penalty = jnp.exp(hyper["log_penalty"])
        if examples <= size:
            w = x.T @ solved(x @ x.T + penalty * jnp.eye(examples), y)
        else:
            w = solved(x.T @ x + penalty * jnp.eye(size), x.T @ y)
        return {"w": w, "scale": hyper["scale"], "bias": hyper["bias"]}

    def solved(matrix: Array, right: Array) -> Array:
        return jax.scipy.linalg.solve(matrix, right, assume_a="pos")

    def logits(head: PyTree, features: Array) -> Array:
        return head["scale"] * features @ head["w"] + head["bias"]

    return Head(init, fit, logits)


def svm(penalty: float = 0.1, *, max_iterations: int = 1000) -> Head:
    r"""A support vector machine for several classes: logits :math:`s \, f(x) X^\top \alpha`.

    .. math::
      \min_\alpha \tfrac12 \|X^\top \alpha\|^2 + \tfrac12 \|\alpha\|^2 - \sum_n \alpha_{n y_n}
      \quad \text{s.t.} \quad \alpha \le C Y, \; \sum_k \alpha_{nk} = 0

    The dual problem of Crammer and Singer, with the unit matrix that MetaOptNet's code adds to the
    kernel, which makes the solution unique. It is solved by accelerated projected gradients and
    differentiated implicitly, at the fixed point, so a derivative costs one linear system of as
    many equations as there are examples times classes. The outer loop learns the scale s.

    Args:
      penalty: C, the largest weight of an example.
      max_iterations: the most iterations; they end when no entry moves by more than C times the
        machine epsilon to the power of 3/4.

    Raises:
      ValueError: for arguments out of range.

    Example:

    >>> import jax.numpy as jnp, metajax
    >>> head = metajax.svm()
    >>> fitted = head.fit(head.init(), jnp.asarray([[-1.0], [1.0]]), jnp.eye(2))
    >>> (10 * head.logits(fitted, jnp.asarray([[-2.0], [3.0]]))).round().tolist()
    [[4.0, -4.0], [-6.0, 6.0]]

    References:
      Lee et al., `Meta-Learning with Differentiable Convex Optimization
      <https://arxiv.org/abs/1904.03758>`_, 2019 (MetaOptNet), equations 6 to 9; Crammer and Singer,
      On the algorithmic implementation of multiclass kernel-based vector machines, 2001.
    """
    check_number("svm: penalty", penalty, "(0, inf)")
    max_iterations = check_integer("svm: max_iterations", max_iterations)

    def solution(x: Array, y: Array) -> Array:
        kernel = x @ x.T + jnp.eye(len(x), dtype=x.dtype)
        # The norm is at least the largest eigenvalue.
        rate = 1 / jnp.linalg.norm(jax.lax.stop_gradient(kernel))
        onto_simplex = jax.vmap(lambda row: optax.projections.projection_simplex(row, penalty))

        def step(alpha: Array) -> Array:
            """A gradient step, projected: C Y - alpha is on the simplex of size C."""
            moved = alpha - rate * (kernel @ alpha - y)
            return (penalty * y - onto_simplex(penalty * y - moved)) * y.sum(axis=1, keepdims=True)

        def solve(residual: Callable[[Array], Array], start: Array) -> Array:
            tolerance = penalty * float(jnp.finfo(x.dtype).eps) ** 0.75

            def body(carry):
                alpha, ahead, momentum, _, count = carry
                following = ahead - residual(ahead)
                # Momentum that points uphill starts anew (O'Donoghue and Candes 2015).
                uphill = jnp.sum((ahead - following) * (following - alpha)) > 0
                grown = jnp.where(uphill, 1.0, (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2)
                share = jnp.where(uphill, 0.0, (momentum - 1) / grown)
                moved = jnp.abs(following - ahead).max()
                return following, following + share * (following - alpha), grown, moved, count + 1

            def goes_on(carry):
                return (carry[3] > tolerance) & (carry[4] < max_iterations)

            one = jnp.ones((), x.dtype)
            return jax.lax.while_loop(goes_on, body, (start, start, one, one * jnp.inf, 0))[0]

        def tangent_solve(linear: Callable[[Array], Array], right: Array) -> Array:
            unit = jnp.eye(right.size, dtype=right.dtype).reshape(right.size, *right.shape)
            matrix = jax.vmap(linear)(unit).reshape(right.size, right.size).T
            return jnp.linalg.solve(matrix, right.reshape(-1)).reshape(right.shape)

        start = jnp.zeros_like(y)
        return jax.lax.custom_root(lambda a: a - step(a), start, solve, tangent_solve)

    def fit(hyper: Array, x: Array, y: Array) -> PyTree:
        return {"w": x.T @ solution(x, y), "scale": hyper}

    def logits(head: PyTree, features: Array) -> Array:
        return head["scale"] * features @ head["w"]

    return Head(lambda: jnp.ones(()), fit, logits)


def head_on(embed: Apply, head: Head) -> Apply:
    """The classifier `(adapted, x) -> logits` of parameters that `closed_form` has adapted.

    A class without support examples has the logit minus infinity.

    Args:
      embed: the features, `(params, x [examples, ...]) -> [examples, size]`.
      head: a head in closed form.

    Example:

    >>> import metajax
    >>> apply = metajax.head_on(lambda params, x: x @ params, metajax.prototypes())
    >>> metric = metajax.accuracy(apply)
    """

    def apply(adapted: Params, x: Array) -> Array:
        logits = head.logits(adapted["head"], embed(adapted["body"], x))
        return logits + jax.lax.stop_gradient(adapted["unseen"])[None]

    return apply


def closed_form(embed: Apply, head: Head, *, ways: int) -> Adapt:
    """An inner loop without steps: the support determines the head, and the body stays.

    Args:
      embed: the features, `(params, x [examples, ...]) -> [examples, size]`.
      head: `prototypes()`, `matching()`, `ridge()` or your own.
      ways: the number of classes. Evaluation may have another one than training.

    Returns:
      An `Adapt` whose adapted parameters are `{"body": params, "head": fitted, "unseen": [ways]}`,
      where `unseen` is minus infinity for classes without support examples, and 0 for others. The
      hyper-parameters of the head are `meta_params.inner`.

    Raises:
      ValueError: for arguments of the wrong kind; when traced, as `cross_entropy` for batches.

    Example, trained with 20 classes, evaluated with 5:

    >>> import jax, jax.numpy as jnp, optax, metajax
    >>> embed = lambda params, x: jnp.tanh(x @ params)
    >>> learner = metajax.head_learner(embed, metajax.ridge(), optax.adam(1e-3), ways=20)
    >>> adapt = metajax.closed_form(embed, metajax.ridge(), ways=5)
    """
    check_function("closed_form: embed", embed, "params, x")
    check_kind("closed_form: head", head, Head, "such as prototypes()")
    ways = check_integer("closed_form: ways", ways)

    def fitted(meta_params: MetaParams, support: Batch, rng: Key) -> Params:
        if isinstance(meta_params.params, Stateful):
            raise ValueError(
                "closed_form: a head in closed form has no inner steps that keep a state, so it "
                "takes parameters alone, not metajax.Stateful."
            )
        x, labels, mask = unpack(support)
        x, labels = without_padding(mask, x, labels)
        features = embed(meta_params.params, x)
        check_labels("closed_form", features, labels)
        one_hot = jax.nn.one_hot(labels, ways, dtype=features.dtype)
        if mask is not None:
            features, one_hot = (jnp.where(mask[:, None], each, 0) for each in (features, one_hot))
        return {
            "body": meta_params.params,
            "head": head.fit(meta_params.inner, features, one_hot),
            "unseen": jnp.where(one_hot.sum(axis=0) > 0, 0.0, -jnp.inf),
        }

    learned = LearnedOptimizer(lambda params: head.init(), lambda inner: optax.identity())
    return start_from(fitted, inner_loop(cross_entropy(head_on(embed, head)), learned, 0))


def head_learner(
    embed: Apply,
    head: Head,
    outer_optimizer: Optimizer,
    *,
    ways: int,
    task_chunk: int | None = None,
    mesh: Mesh | None = None,
) -> MetaLearner:
    r"""Learns features on which a head in closed form classifies well.

    .. math::
      \min_\theta \; \mathbb{E}_i \, Q(\theta, \mathrm{fit}(f_\theta(\mathrm{support}_i)))

    with the cross-entropy on the query as :math:`Q`. With `prototypes()` these are prototypical
    networks, with `matching()` matching networks, with `ridge()` R2-D2.

    Args:
      embed: the features, `(params, x [examples, ...]) -> [examples, size]`.
      head: a head in closed form.
      outer_optimizer: any optax transformation.
      ways: classes per task, which may be more in training than in evaluation, see `closed_form`.
      task_chunk: tasks per `vmap`, see `meta_learner`.
      mesh: devices that share the tasks, see `meta_learner`.

    Raises:
      ValueError: for arguments of the wrong kind.

    Example:

    >>> import jax, jax.numpy as jnp, optax, metajax
    >>> learner = metajax.head_learner(
    ...     lambda params, x: x @ params, metajax.prototypes(), optax.adam(1e-3), ways=2)
    >>> batch = jnp.asarray([[[0.0, 1.0], [1.0, 0.0]]]), jnp.asarray([[0, 1]])
    >>> state, metrics = learner.update(
    ...     learner.init(3 * jnp.eye(2)), metajax.Episode(batch, batch), jax.random.key(0))
    >>> float(metrics["query"]["accuracy"])
    1.0

    References:
      Snell et al., `Prototypical Networks for Few-shot Learning
      <https://arxiv.org/abs/1703.05175>`_, 2017, algorithm 1.
    """
    objective = query_loss(cross_entropy(head_on(embed, head)))
    adapt = closed_form(embed, head, ways=ways)
    return meta_learner(adapt, objective, outer_optimizer, task_chunk=task_chunk, mesh=mesh)
