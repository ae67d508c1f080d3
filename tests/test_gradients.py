"""Meta-gradients against finite differences and against each other; what they cost."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import metajax
from tests.helpers import (
    DEAD,
    RECORDER,
    assert_close,
    distance,
    meta_gradient,
    mlp,
    mlp_loss,
    mlp_params,
    recorded_gradient,
    regression,
)

OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.05, momentum=0.9),
    "nesterov": optax.sgd(0.05, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.05, eps_root=1e-8),
    "rmsprop": optax.rmsprop(0.02),
    "clipped": optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1)),
}
PLAIN = {"maml": metajax.second_order(remat=False), "remat": metajax.second_order(remat=True)}
EXACT = {**PLAIN, "mixed": metajax.mixed_mode()}


def gradient(optimizer, steps=3, objective=metajax.query_loss, loss=mlp_loss, **kwargs):
    adapt = metajax.inner_loop(loss, optimizer, steps, **kwargs)
    return meta_gradient(adapt, objective(loss), mlp_params(), regression())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_second_order_equals_finite_differences(optimizer):
    params, episode = mlp_params(), regression()
    adapt = metajax.inner_loop(mlp_loss, optimizer, 3)
    flat, unravel = ravel_pytree(params)
    objective = metajax.query_loss(mlp_loss)

    @jax.jit
    def value(flat):
        meta_params = metajax.MetaParams(unravel(flat))
        return objective(adapt, meta_params, episode, jax.random.key(0))[0]

    h = 1e-5
    differences = [(value(flat + h * e) - value(flat - h * e)) / (2 * h) for e in np.eye(flat.size)]
    found = ravel_pytree(meta_gradient(adapt, objective, params, episode).params)[0]
    np.testing.assert_allclose(found, differences, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("proximal", [0.0, 2.0])
def test_exact_engines_are_the_same_gradient(optimizer, proximal):
    plain, *others = [
        gradient(OPTIMIZERS[optimizer], meta_gradient=engine, proximal=proximal)
        for engine in EXACT.values()
    ]
    for other in others:
        assert_close(other, plain, rtol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("batches", [metajax.full_batch(), metajax.cycle(4)])
def test_mixed_mode_is_exact_for_all_that_a_loss_depends_on(batches):
    # A learned weight in the inner loss, under jit, vmap and scan.
    def value(weight, engine):
        def inner_loss(params, batch, rng):
            x, y = batch
            penalty = sum(jnp.sum(jnp.sin(weight * p)) for p in jax.tree.leaves(params))
            return weight**2 * jnp.mean((mlp(params, x) - y) ** 2) + penalty, {"w": weight}

        adapt = metajax.inner_loop(
            inner_loss, optax.sgd(0.1), 3, meta_gradient=engine, batches=batches
        )
        objective = metajax.query_loss(mlp_loss)

        def of_task(support, query):
            episode = metajax.Episode(support, query)
            meta_params = metajax.MetaParams(mlp_params())
            return objective(adapt, meta_params, episode, jax.random.key(0))[0]

        return jnp.mean(jax.vmap(of_task)(*regression(tasks=3)))

    found = [jax.jit(jax.grad(lambda w, e=e: value(w, e)))(0.7) for e in EXACT.values()]
    np.testing.assert_allclose(found, found[0], rtol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("steps", [1, 3])
def test_mixed_mode_is_differentiated_again(steps):
    # As where hyper-parameters of the outer loop are learned through several meta-updates.
    def value(params, engine):
        adapt = metajax.inner_loop(mlp_loss, optax.sgd(0.1), steps, meta_gradient=engine)
        objective = metajax.query_loss(mlp_loss)
        return objective(adapt, metajax.MetaParams(params), regression(), jax.random.key(0))[0]

    def of_gradient(params, engine):
        found = jax.grad(value)(params, engine)
        return sum(jnp.sum(jnp.sin(g)) for g in jax.tree.leaves(found))

    plain, mixed = (
        jax.jit(jax.grad(lambda params, e=e: of_gradient(params, e)))(mlp_params())
        for e in (metajax.second_order(), metajax.mixed_mode())
    )
    assert_close(mixed, plain, rtol=1e-10)


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap])
@pytest.mark.parametrize("kind", ["float", "integer", "boolean", "key"])
def test_mixed_mode_takes_losses_that_close_over_traced_arrays_of_any_type(kind, transform):
    (x, y), _ = regression()
    closed_over = {
        "float": jnp.linspace(0.5, 1.5, len(x)),
        "integer": jnp.asarray([0, 2]),
        "boolean": jnp.arange(len(x)) % 2 == 0,
        "key": jax.random.key(1),
    }[kind]
    weigh = {
        "float": lambda errors, c: errors * c,
        "integer": lambda errors, c: errors[c],
        "boolean": lambda errors, c: jnp.where(c, errors, 0),
        "key": lambda errors, c: errors * jax.random.uniform(c, errors.shape),
    }[kind]

    def make_gradient(closed_over, engine):
        def inner_loss(params, batch, rng):
            x, y = batch
            errors = (mlp(params, x) - y).reshape(len(x), -1)[:, 0] ** 2
            return jnp.mean(weigh(errors, closed_over)), {}

        adapt = metajax.inner_loop(inner_loss, optax.sgd(0.1), 2, meta_gradient=engine)

        def value(params):
            adapted, _ = adapt.apply(metajax.MetaParams(params), (x, y), jax.random.key(0))
            return mlp_loss(adapted, (x, y), jax.random.key(0))[0]

        return jax.grad(value)(mlp_params())

    stacked = jnp.stack([closed_over, closed_over]) if transform is jax.vmap else closed_over
    plain, mixed = (
        transform(lambda c, e=e: make_gradient(c, e))(stacked)
        for e in (metajax.second_order(), metajax.mixed_mode())
    )
    assert_close(mixed, plain, rtol=1e-4)


def test_mixed_mode_refuses_forward_mode():
    adapt = metajax.inner_loop(mlp_loss, optax.sgd(0.1), 1, meta_gradient=metajax.mixed_mode())
    assert not adapt.forward
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(
            lambda p: adapt.apply(metajax.MetaParams(p), regression().support, jax.random.key(0))[
                0
            ],
            (mlp_params(),),
            (mlp_params(),),
        )


@pytest.mark.usefixtures("float64")
def test_fomaml_differs_from_maml_where_there_is_curvature():
    maml, fomaml = (
        gradient(optax.sgd(0.1)),
        gradient(optax.sgd(0.1), meta_gradient=metajax.first_order()),
    )
    assert distance(maml, fomaml) > 1e-2


@pytest.mark.usefixtures("float64")
def test_fomaml_equals_maml_where_the_inner_loss_is_linear():
    def linear(params, batch, rng):
        return jnp.sum(ravel_pytree(params)[0] * 0.3), {}

    def objective(_):
        return metajax.query_loss(mlp_loss)

    found = [
        gradient(optax.sgd(0.1), loss=linear, objective=objective, meta_gradient=engine)
        for engine in (metajax.second_order(), metajax.first_order())
    ]
    assert_close(*found, rtol=1e-12)


@pytest.mark.usefixtures("float64")
# Conjugate gradients are linear, and so the same both ways, only when run to the end.
@pytest.mark.parametrize("engine", [*PLAIN.values(), metajax.implicit(cg_steps=60)])
def test_forward_mode_agrees_with_reverse_mode(engine):
    params, episode = mlp_params(), regression()
    adapt = metajax.inner_loop(
        mlp_loss, optax.sgd(0.05), 2, meta_gradient=engine, proximal=5.0 * engine.implicit
    )
    tangent = jax.tree.map(jnp.ones_like, params)

    def value(params):
        meta_params = metajax.MetaParams(params)
        return metajax.query_loss(mlp_loss)(adapt, meta_params, episode, jax.random.key(0))[0]

    _, forward = jax.jvp(value, (params,), (tangent,))
    _, linear = jax.linearize(value, params)
    reverse = sum(jnp.sum(g) for g in jax.tree.leaves(jax.grad(value)(params)))
    assert_close([forward, linear(tangent)], [reverse, reverse], rtol=1e-8)


@pytest.mark.parametrize(
    "engine",
    [*EXACT.values(), metajax.first_order(), metajax.implicit()],
    ids=[*EXACT, "first_order", "implicit"],
)
def test_tasks_of_a_convolution_of_lax_are_those_apart(engine):
    # Under `vmap` its gradients are mapped along their channels.
    def loss(params, batch, rng):
        x, y = batch
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            x, params["kernel"], (1, 1), "SAME", dimension_numbers=layout
        )
        return jnp.mean((jnp.tanh(x).mean((1, 2)) @ params["head"] - y) ** 2), {}

    rng = np.random.default_rng(0)
    params = {
        "kernel": jnp.asarray(rng.normal(size=(3, 3, 2, 4)), jnp.float32),
        "head": jnp.asarray(rng.normal(size=(4, 1)), jnp.float32),
    }
    x = jnp.asarray(rng.normal(size=(3, 5, 6, 6, 2)), jnp.float32)
    episodes = metajax.Episode((x, x.mean((2, 3, 4))[..., None]), (-x, x.max((2, 3, 4))[..., None]))
    adapt = metajax.inner_loop(
        loss, optax.sgd(0.1), 2, meta_gradient=engine, proximal=5.0 * engine.implicit
    )
    together, apart = (
        recorded_gradient(
            metajax.meta_learner(adapt, metajax.query_loss(loss), RECORDER, task_chunk=chunk),
            params,
            episodes,
        )
        for chunk in (3, 1)
    )
    assert_close(together, apart, rtol=1e-4, atol=1e-6)


def test_multi_step_metrics_may_be_numbers():
    def loss(params, batch, rng):
        return jnp.mean((params - batch) ** 2), {"n": 1, "half": 0.5}

    adapt = metajax.inner_loop(loss, optax.sgd(0.1), 2)
    learner = metajax.meta_learner(adapt, metajax.multi_step_query_loss(loss), optax.sgd(0.1))
    x = jnp.ones((2, 3))
    state = learner.init(jnp.zeros(()))
    _, metrics = learner.update(state, metajax.Episode(x, x), jax.random.key(0))
    assert (metrics["query"]["n"], metrics["query"]["half"]) == (1, 0.5)


def compiled(steps, **kwargs):
    sizes = (2, 32, 32, 1)
    objective = kwargs.pop("objective", metajax.query_loss(mlp_loss))
    adapt = metajax.inner_loop(mlp_loss, optax.sgd(0.01), steps, **kwargs)

    def value(params, episode):
        meta_params = metajax.MetaParams(params)
        return objective(adapt, meta_params, episode, jax.random.key(0))[0]

    episode = regression(shots=64, dtype=jnp.float32)
    return jax.jit(jax.grad(value)).lower(mlp_params(0, sizes, jnp.float32), episode).compile()


def temporary_bytes(steps, **kwargs):
    return compiled(steps, **kwargs).memory_analysis().temp_size_in_bytes


# The support loss before each step is reported, so four bytes a step are allowed.
@pytest.mark.optimized
@pytest.mark.parametrize(
    "kwargs",
    [
        {"meta_gradient": metajax.first_order()},
        {"meta_gradient": metajax.implicit(cg_steps=3), "proximal": 1.0},
        {"meta_gradient": metajax.first_order(), "objective": metajax.displacement()},
    ],
    ids=["first_order", "implicit", "reptile"],
)
def test_memory_does_not_grow_with_the_inner_steps(kwargs):
    assert temporary_bytes(40, **kwargs) - temporary_bytes(5, **kwargs) <= 4 * 35


@pytest.mark.optimized
def test_a_step_stores_parameters_where_second_order_stores_activations():
    size = 4 * sum(p.size for p in jax.tree.leaves(mlp_params(0, (2, 32, 32, 1))))
    plain, remat, mixed = (
        (temporary_bytes(40, meta_gradient=e) - temporary_bytes(20, meta_gradient=e)) / 20
        for e in EXACT.values()
    )
    assert remat <= 2.5 * size
    assert mixed <= 1.1 * size
    assert plain > 4 * remat


@pytest.mark.optimized
def test_first_order_needs_fewer_operations():
    # XLA counts a loop body once, so the loops are unrolled.
    flops = [
        compiled(3, meta_gradient=engine, unroll=3).cost_analysis()["flops"]
        for engine in (metajax.first_order(), metajax.second_order())
    ]
    assert flops[0] < 0.75 * flops[1]


def test_the_first_of_one_step_runs_on_parameters_that_all_tasks_share():
    adapt = metajax.inner_loop(mlp_loss, optax.sgd(0.1), 1)
    meta_params = metajax.MetaParams(mlp_params(sizes=(2, 1)))

    def adapted(support):
        return adapt.apply(meta_params, support, jax.random.key(0))[0]

    program = str(jax.make_jaxpr(jax.vmap(adapted))(regression(tasks=3).support))
    batch_axes = re.findall(r"dot_general\[\s*dimension_numbers=\(\(.*?\), (\(.*?\))\)", program)
    # The layer's product of all tasks, and the gradients of its weights for each.
    assert sorted(batch_axes) == ["([0], [0])", "([], [])"]


@jax.custom_vjp
def reversed_vjp(x):
    return x


reversed_vjp.defvjp(lambda x: (x, None), lambda _, g: (-g,))


@jax.custom_jvp
def reversed_jvp(x):
    return x


reversed_jvp.defjvp(lambda primals, tangents: (primals[0], -tangents[0]))


@jax.custom_gradient
def reversed_gradient(x):
    return x, lambda g: -g


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
@pytest.mark.parametrize("reverse", [reversed_vjp, reversed_jvp, reversed_gradient])
@pytest.mark.parametrize("engine", EXACT.values(), ids=EXACT)
def test_a_reversed_gradient_is_differentiated_as_it_is(engine, reverse, wrap):
    def support_loss(p, batch, rng):
        return wrap(lambda a, b: (reverse(a) * b - 1) ** 2 / 2)(p["a"], p["b"]), {}

    def judged(p, batch, rng):
        return p["a"] ** 2 + p["b"], {}

    params = {"a": jnp.asarray(2.0), "b": jnp.asarray(3.0)}
    adapt = metajax.inner_loop(support_loss, optax.sgd(0.1), 1, meta_gradient=engine)
    episode = metajax.Episode(jnp.zeros(1), jnp.zeros(1))
    found = meta_gradient(adapt, metajax.query_loss(judged), params, episode).params
    # By finite differences of the adapted loss.
    assert_close([found["a"], found["b"]], [12.2, 8.3])


def test_rules_of_jax_keep_mixed_mode():
    def rectified_loss(params, x, rng):
        return jnp.mean(jax.nn.relu(x @ params["w"]) @ params["v"]), {}

    adapt = metajax.inner_loop(
        rectified_loss, optax.sgd(0.1), 1, meta_gradient=metajax.mixed_mode()
    )
    x = jnp.ones((4, 1))
    traced = str(
        jax.make_jaxpr(lambda p: adapt.apply(p, x, jax.random.key(0)))(metajax.MetaParams(DEAD))
    )
    assert "_symmetric" in traced
