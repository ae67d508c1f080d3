"""Adaptation to one task: the only inner loop of the library."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from metajax import arguments, base
from metajax.base import Adapt, AdaptInfo, Batch, Key, LossFn, MetaParams, Params, PyTree
from metajax.batches import Batches, full_batch
from metajax.gradients import MetaGradient, second_order, without_derivative
from metajax.optimizers import LearnedOptimizer, as_learned, check_optimizer, merged, only
from metajax.remat import recomputing_pays


def inner_loop(
    loss: LossFn,
    optimizer: optax.GradientTransformation | LearnedOptimizer,
    num_steps: int,
    *,
    meta_gradient: MetaGradient | None = None,
    proximal: float = 0.0,
    batches: Batches | None = None,
    carry: str | None = None,
    unroll: int = 1,
) -> Adapt:
    r"""Adapts parameters to one task by `num_steps` steps of an optax optimizer.

    .. math::
      \phi_0 = \theta, \quad \phi_{t+1} = \phi_t + \mathrm{opt}\big(
      \nabla_\phi [L(\phi_t, b_t) + \tfrac{\lambda}{2} \|\phi_t - \theta\|^2]\big)

    Args:
      loss: `(params, batch, rng) -> (scalar, metrics)`.
      optimizer: any optax transformation, or a `LearnedOptimizer`. Its update also receives the
        loss as `value`, `grad` and `value_fn`, so `optax.polyak_sgd` works, and `optax.lbfgs` with
        `first_order()` and `implicit()`. An optimizer that divides by a norm or a root has no
        derivative where that is zero; `metajax.check_differentiable` finds out.
      num_steps: the number of adaptation steps, static; 0 leaves the parameters as they are.
      meta_gradient: how gradients cross the loop: `second_order()` (default), `mixed_mode()`,
        `first_order()` or `implicit()`.
      proximal: the coefficient of the pull towards the initialization.
      batches: the batch of each step: `full_batch()` (default), `cycle(size)`,
        `replacement(size)` or `per_step()`.
      carry: `None` starts every task from a fresh optimizer state. `"mean"` starts all tasks of a
        meta-batch from one state and averages their final states. `"serial"` runs the tasks one
        after another and passes the state from each to the next.
      unroll: inner steps per iteration of the compiled loop.

    Returns:
      An `Adapt`: `init(params)` and `apply(meta_params, support, rng, ...)`, where the support has
      leaves `[shots, ...]` and the losses it reports are `[num_steps]`.

    Raises:
      ValueError: for arguments of the wrong kind or that do not fit together; by `init`, for
        parameters that cannot be adapted; when `apply` is traced, for an optimizer that the
        meta-gradient cannot cross, for a loss that does not return `(scalar, metrics)` and for the
        state of another inner loop.

    Example:

    >>> import jax, jax.numpy as jnp, optax, metajax
    >>> def loss(params, batch, rng):
    ...     x, y = batch
    ...     return jnp.mean((x @ params - y) ** 2), {}
    >>> adapt = metajax.inner_loop(loss, optax.sgd(0.1), num_steps=3)
    >>> support = jnp.ones((5, 2)), jnp.zeros(5)
    >>> adapted, info = adapt.apply(
    ...     metajax.MetaParams(jnp.ones(2)), support, jax.random.key(0))
    >>> adapted.shape, info.loss.shape
    ((2,), (3,))

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      algorithm 1; the proximal term: Rajeswaran et al., 2019, equation 3.
    """
    meta_gradient = second_order() if meta_gradient is None else meta_gradient
    batches = full_batch() if batches is None else batches
    num_steps = base.check_integer("inner_loop: num_steps is static and", num_steps, minimum=0)
    unroll = base.check_integer("inner_loop: unroll", unroll)
    arguments.check_arguments(loss, meta_gradient, proximal, batches, carry)
    inner_optimizer = as_learned(optimizer)
    pulled = not arguments.is_zero(proximal)
    moves = inner_optimizer.moves
    carries = bool(carry) and not inner_optimizer.per_task

    rebuild = functools.partial(
        inner_loop,
        loss,
        optimizer,
        num_steps=num_steps,
        meta_gradient=meta_gradient,
        proximal=proximal,
        batches=batches,
        carry=carry,
        unroll=unroll,
    )

    def init(params: Params) -> tuple[PyTree, PyTree]:
        params, model = base.strongly_typed(arguments.adaptable(params))
        inner = base.strongly_typed(inner_optimizer.init(params))
        arguments.check_learned(inner, meta_gradient)
        opt_state = inner_optimizer.make(inner).init(only(params, moves)) if carries else ()
        return inner, base.join_inner(base.strongly_typed(opt_state), model)

    def apply(meta_params, support, rng, *, inner_state=(), probe=None):
        base.check_kind("meta_params", meta_params, MetaParams, "such as state.meta_params")
        params, model = base.split_state(meta_params.params)
        arguments.check_modules(params)
        params, inner = base.strongly_typed((params, meta_params.inner))
        carried, carried_model = base.split_inner(inner_state)
        arguments.check_same_learned(inner, jax.eval_shape(inner_optimizer.init, params))
        if isinstance(support, base.Episode):
            raise ValueError("adaptation takes episode.support, got the whole Episode.")
        support = base.as_arrays("support", support)
        if num_steps and jax.tree.leaves(support) and not base.num_numbers(support):
            raise ValueError("the support has no examples: give each task at least one shot.")
        probe = probe or (lambda params, step: ())
        batch_rng, loss_rng = base.split_key(rng)
        batch_at = batches(support, num_steps, batch_rng)

        # The carried state is newer than the state in the initial parameters.
        model = model if base.same_structure(carried_model, ()) else carried_model
        stateful = not base.same_structure(model, ())
        model = jax.lax.stop_gradient(base.strongly_typed(model))
        initial, frozen = only(params, moves), only(params, lambda path: not moves(path))

        def whole(moving, model):
            params = merged(moving, frozen)
            # A copy, because variables of NNX can be written only in the trace that made them.
            return base.Stateful(params, jax.tree.map(lambda x: x, model)) if stateful else params

        def pull(moving):
            return 0.5 * proximal * base.squared_distance(moving, initial) if pulled else 0

        def penalized(moving, model, batch, rng):
            value, aux, model = arguments.check_loss(loss(whole(moving, model), batch, rng), model)
            return value + pull(moving), (aux, jax.lax.stop_gradient(model))

        transform = inner_optimizer.make(inner)
        check_optimizer("the result of LearnedOptimizer.make", transform)
        transform = optax.with_extra_args_support(transform)

        def update(given, grads, opt_state, moving, value):
            def value_fn(moving):
                return penalized(moving, *given)[0]

            if not meta_gradient.crosses_optimizer:
                value = jax.lax.stop_gradient(value)
            extra = {"value": value, "grad": grads, "value_fn": value_fn}
            return transform.update(grads, opt_state, moving, **extra)

        def operands(model, step):
            return model, batch_at(step), jax.random.fold_in(loss_rng, step)

        opt_state = transform.init(initial)
        if jax.tree.leaves(carried):
            if not (carry and base.same_structure(carried, opt_state)):
                raise ValueError(
                    f"inner_loop: built with carry={carry!r}, it cannot continue from an "
                    f"inner_state of {jax.tree.structure(carried)}. Use the carry and the inner "
                    "optimizer of the training."
                )
            opt_state = carried

        gradient, remat = meta_gradient.gradient(penalized), meta_gradient.remat
        if num_steps:
            first = operands(model, 0)
            (value, _), _ = jax.eval_shape(gradient, initial, *first)
            if remat is None:
                remat = recomputing_pays(num_steps, penalized, initial, first, params)
            first_update = functools.partial(update, first)
            if arguments.check_inner_optimizer(
                transform.init, first_update, initial, opt_state, value, meta_gradient
            ):
                update = without_derivative(update)

        @(jax.checkpoint if remat else lambda step: step)
        def take_step(moving, opt_state, model, step):
            given = operands(model, step)
            (value, (aux, model)), grads = gradient(moving, *given)
            updates, opt_state = update(given, grads, opt_state, moving, value)
            moved = optax.apply_updates(moving, updates)
            return moved, opt_state, model, (value - pull(moving), aux)

        def body(state, step):
            moving, _, model = state
            probed = probe(whole(moving, model), step)
            *state, told = take_step(*state, step)
            return tuple(state), (*told, probed)

        (moving, opt_state, model), (values, auxes, probed) = _loop(
            body, (initial, opt_state, model), num_steps, unroll
        )

        def optimality(moving):
            return jax.grad(penalized, has_aux=True)(moving, *operands(model, num_steps - 1))[0]

        if num_steps:
            moving = meta_gradient.solution(moving, optimality)
        adapted = whole(moving, model)
        last = probe(adapted, num_steps)
        probed = jax.tree.map(lambda xs, x: jnp.append(xs, jnp.asarray(x)[None], 0), probed, last)
        ended = base.join_inner(opt_state if carries else (), model)
        return adapted, AdaptInfo(values, auxes, probed, ended, opt_state)

    return Adapt(
        init,
        apply,
        rebuild,
        carry,
        differentiates_steps=not meta_gradient.implicit,
        forward=meta_gradient.forward,
        optimizer=inner_optimizer if num_steps and meta_gradient.crosses_optimizer else None,
        num_steps=num_steps,
        counts=inner_optimizer.counts,
    )


def start_from(start: Callable[[MetaParams, Batch, Key], Params], adapt: Adapt) -> Adapt:
    """Starts an inner loop from parameters that are computed from the support.

    The meta-gradient crosses this computation, and `rebuild` keeps it. A `start` may itself be an
    inner loop, or add a head to the parameters.

    Args:
      start: `(meta_params, support, rng) -> params`, for one task; pure.
      adapt: the inner loop that continues from there; with `num_steps=0` the start is the result.

    Returns:
      An `Adapt`. Its `init` is that of `adapt`, with the meta-learned parameters.

    Raises:
      ValueError: for arguments of the wrong kind.

    Example, a start at the mean of the support:

    >>> import jax, jax.numpy as jnp, optax, metajax
    >>> loss = lambda params, batch, rng: (jnp.mean((params - batch) ** 2), {})
    >>> adapt = metajax.start_from(
    ...     lambda meta_params, support, rng: meta_params.params + support.mean(),
    ...     metajax.inner_loop(loss, optax.sgd(0.1), num_steps=0))
    >>> adapted, _ = adapt.apply(
    ...     metajax.MetaParams(jnp.zeros(())), jnp.asarray([1.0, 3.0]), jax.random.key(0))
    >>> float(adapted)
    2.0
    """
    base.check_function("start_from: start", start, "meta_params, support, rng")
    base.check_kind("start_from: adapt", adapt, Adapt, "from inner_loop")

    def apply(meta_params, support, rng, *, inner_state=(), probe=None):
        base.check_kind("meta_params", meta_params, MetaParams, "such as state.meta_params")
        start_rng, rng = base.split_key(rng)
        optimizer, model = base.split_inner(inner_state)
        if not base.same_structure(model, ()):
            params = base.split_state(meta_params.params)[0]
            meta_params = meta_params._replace(params=base.Stateful(params, model))
        params = start(meta_params, support, start_rng)
        if isinstance(params, base.Stateful):
            # The state that the start leaves is newer than the one that it was given.
            inner_state = optimizer
        return adapt.apply(
            meta_params._replace(params=params), support, rng, inner_state=inner_state, probe=probe
        )

    def rebuild(**changes):
        return start_from(start, adapt.rebuild(**changes))

    return adapt._replace(apply=apply, rebuild=rebuild)


def _loop(body, state, num_steps: int, unroll: int):
    """A scan over the inner steps, with shortcuts for none and one."""
    if num_steps == 0:
        # A scan without iterations does not run without `jit`.
        told = jax.eval_shape(body, state, jnp.zeros((), jnp.int32))[1]
        return state, jax.tree.map(lambda x: jnp.zeros((0, *x.shape), x.dtype), told)
    steps = jnp.arange(num_steps)
    if num_steps == 1:
        # In a scan each task of a `vmap` would copy the initial parameters first.
        state, told = body(state, steps[0])
        return state, jax.tree.map(lambda x: jnp.asarray(x)[None], told)
    return jax.lax.scan(body, state, steps, unroll=unroll)
