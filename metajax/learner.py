"""The meta-learner: the mean meta-gradient of a meta-batch, and one step of outer optimization."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from metajax import base
from metajax.base import Adapt, Episode, MetaLearner, MetaParams, MetaState, Objective, PyTree
from metajax.optimizers import check_optimizer, check_outer_update
from metajax.parallel import map_tasks, over_tasks


def meta_learner(
    adapt: Adapt,
    objective: Objective,
    outer_optimizer: optax.GradientTransformation,
    *,
    task_chunk: int | None = None,
    mesh: Mesh | None = None,
) -> MetaLearner:
    r"""Makes a learner whose update is one outer step on the mean objective of a meta-batch.

    .. math::
      \theta \leftarrow \mathrm{opt}\Big(\theta,\; \nabla_\theta \frac{1}{n} \sum_{i=1}^{n}
      J(\mathrm{adapt}(\theta, \mathrm{support}_i), \mathrm{query}_i)\Big)

    Every algorithm of the library is this function with its own inner loop, meta-gradient and
    objective.

    Args:
      adapt: an inner loop from `metajax.inner_loop`.
      objective: `query_loss(loss)`, `multi_step_query_loss(loss)`, `displacement()` or your own.
      outer_optimizer: any optax transformation of `MetaParams`. Its update also receives the mean
        objective as `value`.
      task_chunk: tasks per `vmap`. Smaller chunks need less memory. By default an accelerator takes
        all tasks and a CPU as many as its cache holds, at most eight. Results do not depend on it
        beyond rounding, with JAX's default random numbers (`vmap` changes those of `rbg` keys).
      mesh: devices that share the tasks of a meta-batch, such as `metajax.task_mesh()`; each has a
        copy of the state. Results do not depend on it, as on `task_chunk`.

    Returns:
      A `MetaLearner`. Its `update` takes episodes with leaves `[tasks, ...]`, and returns metrics
      averaged over tasks: those of the objective (`query_loss`, `support_loss` before each inner
      step `[num_steps]`, the loss function's own metrics under `query` and `support`), the
      `objective`, and the global norm of the meta-gradient, `meta_gradient_norm`. With learned
      inner parameters, `meta_gradient_norm_inner` is the norm of their part.

    Raises:
      ValueError: for arguments of the wrong kind and for a mesh with `carry="serial"`; when
        `update` is traced, for the state of another learner, and for a meta-batch whose arrays
        disagree on the number of tasks or which the devices cannot share equally.

    Example, joint pretraining, which is a learner without inner steps:

    >>> import jax, jax.numpy as jnp, optax, metajax
    >>> loss = lambda params, batch, rng: (jnp.mean((params - batch) ** 2), {})
    >>> adapt = metajax.inner_loop(loss, optax.sgd(0.1), num_steps=0)
    >>> learner = metajax.meta_learner(adapt, metajax.query_loss(loss), optax.sgd(0.1))
    >>> state = learner.init(jnp.zeros(()))
    >>> episodes = metajax.Episode(support=jnp.zeros((4, 5)), query=jnp.ones((4, 5)))
    >>> state, metrics = jax.jit(learner.update)(state, episodes, jax.random.key(0))
    >>> float(metrics["query_loss"])
    1.0

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      algorithm 1.
    """
    base.check_kind("meta_learner: adapt", adapt, Adapt, "from inner_loop")
    inputs, such = "adapt, meta_params, episode, rng, *, inner_state", " such as query_loss(loss)"
    base.check_function("meta_learner: the objective", objective, inputs, such)
    check_optimizer("meta_learner: the outer optimizer", outer_optimizer)
    outer_optimizer = optax.with_extra_args_support(outer_optimizer)
    serial = adapt.carry == "serial"
    if serial and mesh is not None:
        raise ValueError(
            'meta_learner: carry="serial" runs the tasks one after another, so a mesh cannot run '
            'them in parallel. Use carry="mean" or leave out the mesh.'
        )

    def chunk_gradient(shared, tasks, carry):
        meta_params, inner_state = shared
        start = carry if serial else inner_state

        def mean_objective(meta_params):
            def run_task(episode, rng):
                value, told = objective(adapt, meta_params, episode, rng, inner_state=start)
                check_carried(adapt, start, told[1])
                return value, told

            values, (metrics, ended) = map_tasks(run_task, *tasks)
            value = jnp.mean(values)
            metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)
            return value, ({"objective": value, **metrics}, _mean(ended))

        gradient, (metrics, ended) = jax.grad(mean_objective, has_aux=True)(meta_params)
        return (gradient, metrics, () if serial else ended), (ended if serial else carry)

    # A serial carry passes from task to task, so every chunk is a single task.
    mean_gradient = over_tasks(chunk_gradient, task_chunk=1 if serial else task_chunk, mesh=mesh)

    def init(params):
        inner, inner_state = adapt.init(params)
        meta_params = base.strongly_typed(MetaParams(base.split_state(params)[0], inner))
        check_outer_update(outer_optimizer, meta_params)
        opt_state = base.strongly_typed(outer_optimizer.init(meta_params))
        return MetaState(meta_params, opt_state, inner_state, jnp.zeros((), jnp.int32))

    def adapt_to(state, support, rng):
        check_state(state)
        adapted, info = adapt.apply(state.meta_params, support, rng, inner_state=state.inner_state)
        check_carried(adapt, state.inner_state, info.inner_state)
        return adapted

    def update(state, episodes, rng):
        check_opt_state(state, outer_optimizer.init)
        rngs = base.split_key(rng, check_episodes(episodes))
        shared, start = (state.meta_params, state.inner_state), state.inner_state if serial else ()
        (gradient, metrics, ended), carry = mean_gradient(shared, (episodes, rngs), start)
        updates, opt_state = outer_optimizer.update(
            gradient, state.opt_state, state.meta_params, value=metrics["objective"]
        )
        meta_params = optax.apply_updates(state.meta_params, updates)
        metrics["meta_gradient_norm"] = optax.tree.norm(gradient)
        if jax.tree.leaves(gradient.inner):
            metrics["meta_gradient_norm_inner"] = optax.tree.norm(gradient.inner)
        inner_state = carry if serial else ended
        return MetaState(meta_params, opt_state, inner_state, state.step + 1), metrics

    return MetaLearner(init, adapt_to, update, adapt)


def check_state(state: MetaState) -> None:
    """Raises `ValueError` unless `state` is a `MetaState`."""
    base.check_kind("the state", state, MetaState, "from learner.init(params)")


def check_opt_state(state: MetaState, init: Callable[[MetaParams], PyTree]) -> None:
    """Raises `ValueError` unless `init` creates an optimizer state of the same structure."""
    check_state(state)
    what = "the state's opt_state belongs to another outer optimizer:"
    _check_structure(what, state.opt_state, jax.eval_shape(init, state.meta_params))


def check_carried(adapt: Adapt, before: PyTree, after: PyTree) -> None:
    """Raises `ValueError` if an update would change the structure of the carried state."""
    what = f"this learner was built with carry={adapt.carry!r}, but the state's inner_state is"
    _check_structure(what, before, after)


def _check_structure(what: str, found: PyTree, expected: PyTree) -> None:
    if not base.same_structure(found, expected):
        raise ValueError(
            f"{what} {jax.tree.structure(found)} instead of {jax.tree.structure(expected)}. "
            "Start from this learner's init(params)."
        )


def check_episodes(episodes: Episode) -> int:
    """Returns the number of tasks, on which all arrays of a meta-batch must agree."""
    base.check_kind("a meta-batch", episodes, Episode, "of support= and query=")
    remedy = " For a single task add the axis: jax.tree.map(lambda x: x[None], episode)."
    return base.leading_size("episodes", episodes, "task", remedy)


def _mean(stacked: PyTree) -> PyTree:
    """Averages over tasks; integers, such as an optimizer's step count, are the first task's."""
    return jax.tree.map(
        lambda x: jnp.mean(x, axis=0) if jnp.issubdtype(x.dtype, jnp.inexact) else x[0], stacked
    )
