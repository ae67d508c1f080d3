"""Outer steps: curvature three ways, one trust-region step against NumPy, learning at all."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import rl
from tests.rl.environments import chase

MODEL = rl.GaussianMLP(2, hidden=(4,), activation=jnp.tanh)
START = MODEL.init(jax.random.key(0), jnp.zeros(2))


SLOW = pytest.mark.slow


def adapting(env=None, num_steps=1, optimizer=None, trajectories=4, **kwargs):
    sample = rl.sampler(env or chase(), MODEL.apply, trajectories)
    return rl.inner_loop(MODEL.apply, sample, optimizer or optax.sgd(0.3), num_steps, **kwargs)


def episodes(tasks=4, seed=1):
    return metajax.tasks.meta_batch(rl.Tasks(chase().sample_tasks), tasks, jax.random.key(seed))


def flat_problem(num_steps, every_step):
    """One task's KL and curvature product as functions of a vector, in float64."""
    loop = adapting(num_steps=num_steps, optimizer=optax.sgd(0.1))
    start = metajax.MetaParams(jax.tree.map(lambda x: x.astype(jnp.float64) * 0.7, START))
    task = {"goal": jnp.array([1.0, -1.0])}
    collected = jax.jit(rl.collect, static_argnums=0)(loop, start, task, jax.random.key(2))
    vector, unravel = jax.flatten_util.ravel_pytree(start)

    def kl(x):
        return rl.loss_and_kl(loop, unravel(x), collected, every_step=every_step)[1]

    def product(x, v):
        batch = jax.tree.map(lambda x: x[None], collected)
        curvature = rl.kl_curvature(loop, unravel(x), batch, every_step=every_step)
        return jax.flatten_util.ravel_pytree(curvature(unravel(v)))[0]

    return vector, jax.jit(kl), jax.jit(product)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("num_steps", "every_step"), [(0, False), (1, False), pytest.param(2, True, marks=SLOW)]
)
def test_the_curvature_is_that_of_full_differentiation_and_of_differences(num_steps, every_step):
    vector, kl, product = flat_problem(num_steps, every_step)
    rng = np.random.default_rng(0)
    u, v = jnp.asarray(rng.normal(size=(2, vector.size)))
    full = jax.jit(jax.hessian(kl))(vector)
    np.testing.assert_allclose(product(vector, v), full @ v, rtol=1e-8, atol=1e-10)
    gradient, eps = jax.jit(jax.grad(kl)), 1e-5
    np.testing.assert_allclose(gradient(vector), 0, atol=1e-10)
    difference = (gradient(vector + eps * v) - gradient(vector - eps * v)) / (2 * eps)
    np.testing.assert_allclose(product(vector, v), difference, rtol=1e-4, atol=1e-6)
    assert float(u @ product(vector, v)) == pytest.approx(float(v @ product(vector, u)), rel=1e-9)
    assert float(jnp.linalg.eigvalsh(full).min()) > -1e-10
    assert float(kl(vector)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("num_steps", [1, pytest.param(2, marks=SLOW)])
@pytest.mark.parametrize("engine", [metajax.first_order(), metajax.second_order()])
def test_what_was_collected_is_not_adapted_again(num_steps, engine):
    """The known policies change no derivative, and with first order save the inner gradients."""
    loop = adapting(num_steps=num_steps, meta_gradient=engine)
    start, task = metajax.MetaParams(START), {"goal": jnp.array([1.0, -1.0])}
    collected = jax.jit(rl.collect, static_argnums=0)(loop, start, task, jax.random.key(2))

    def program(collecting):
        def loss(start, collected):
            arguments = {"every_step": num_steps > 1, "collecting": collecting}
            return rl.loss_and_kl(loop, start, collected, **arguments)[0]

        return jax.jit(jax.value_and_grad(loss)).lower(start, collected).compile()

    programs = program(False), program(True)
    replayed, known = (run(start, collected) for run in programs)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=1e-5), replayed, known
    )
    products = [run.as_text().count(" dot(") for run in programs]
    if engine == metajax.first_order():
        assert products[1] <= products[0] / 2


def test_the_curvature_of_some_trajectories_is_at_the_policies_of_all():
    loop = adapting(meta_gradient=metajax.first_order())
    start, task = metajax.MetaParams(START), {"goal": jnp.array([1.0, -1.0])}
    collected = jax.jit(rl.collect, static_argnums=0)(loop, start, task, jax.random.key(2))
    some = rl.Collected(
        jax.tree.map(lambda x: x[:, ::2], collected.support),
        jax.tree.map(lambda x: x[::2], collected.query),
        collected.policies,
    )
    adapted = jax.tree.map(lambda x: x[-1], collected.policies)
    vector, unravel = jax.flatten_util.ravel_pytree(adapted)
    v = jnp.asarray(np.random.default_rng(0).normal(size=vector.size), jnp.float32)

    def kl(x):
        return jnp.mean(
            some.query.distribution.kl(MODEL.apply(unravel(x), some.query.observations))
        )

    expected = jax.jit(lambda: jax.jvp(jax.grad(kl), (vector,), (v,))[1])()
    batch = jax.tree.map(lambda x: x[None], some)
    found = jax.jit(lambda: rl.kl_curvature(loop, start, batch)(metajax.MetaParams(unravel(v))))()
    np.testing.assert_allclose(
        jax.flatten_util.ravel_pytree(found.params)[0], expected, rtol=1e-3, atol=1e-5
    )


def numpy_trust_region(x, loss_and_kl, gradient, product, *, max_kl, cg_steps, damping):
    """One step as Schulman et al. describe it, on vectors; also where the next search begins and
    what conjugate gradients leave of the gradient."""
    loss, _ = loss_and_kl(x)
    g = gradient(x)
    direction, r = np.zeros_like(g), g.copy()
    p, rr = r.copy(), r @ r
    for _ in range(cg_steps):
        z = product(p) + damping * p
        alpha = rr / (p @ z)
        direction, r = direction + alpha * p, r - alpha * z
        new = r @ r
        p, rr = r + new / rr * p, new
    found = product(direction) + damping * direction
    quadratic, rest = 0.5 * direction @ found, np.linalg.norm(g - found) / np.linalg.norm(g)
    step, scale = np.sqrt(max_kl / quadratic) * direction, 1.0
    for tries in range(15):
        candidate = x - scale * step
        new_loss, kl = loss_and_kl(candidate)
        # To where a KL that is quadratic in the step has nine tenths of the bound.
        within = np.sqrt(0.9 * max_kl / kl)
        if new_loss < loss and kl <= max_kl:
            return candidate, kl, tries + 1, min(1.0, scale * within), rest
        scale *= min(0.8, max(0.5, within)) if kl > max_kl else 0.8
    return x, 0.0, 15, 1.0, rest


def numpy_returns_and_entropies(trajectories):
    """Means over tasks and trajectories of one step."""
    log_std = np.asarray(trajectories.distribution.log_std)
    entropies = (log_std + 0.5 * np.log(2 * np.pi * np.e)).sum(-1)
    return np.asarray(trajectories.rewards).sum(-1).mean(), entropies.mean()


@functools.cache
def maml_trpo(num_steps=1, meta_gradient=None, task_chunk=4, devices=1):
    """An inner loop, its learner and the learner's compiled update, shared by the tests."""
    # More conjugate-gradient steps would magnify the rounding of float32.
    loop = adapting(chase(broken_beyond=2.0), num_steps, meta_gradient=meta_gradient)
    mesh = None if devices == 1 else metajax.task_mesh(devices)
    learner = rl.maml_trpo(loop, cg_steps=3, damping=0.01, task_chunk=task_chunk, mesh=mesh)
    return loop, learner, jax.jit(learner.update)


@pytest.mark.parametrize(
    ("num_steps", "meta_gradient"),
    [(1, None), pytest.param(2, metajax.first_order(), marks=SLOW)],
)
def test_one_trust_region_step_is_numpy_s(num_steps, meta_gradient):
    loop, learner, update = maml_trpo(num_steps, meta_gradient)
    state, rng, tasks = learner.init(START), jax.random.key(3), episodes()
    after, metrics = update(state, tasks, rng)
    assert float(metrics["accepted"]) == 1

    rngs = jax.random.split(rng, 4)
    collect = jax.vmap(lambda t, r: rl.collect(loop, state.meta_params, t, r))
    batch = jax.jit(collect)(tasks.support, rngs)
    vector, unravel = jax.flatten_util.ravel_pytree(state.meta_params)

    def mean(fn):
        return lambda x: jax.tree.map(
            lambda v: v.mean(0), jax.vmap(lambda c: fn(unravel(x), c))(batch)
        )

    measure = jax.jit(mean(lambda *args: rl.loss_and_kl(loop, *args)))
    gradient = jax.jit(jax.grad(lambda x: measure(x)[0]))
    # The full Hessian for exact; first order leaves its derivatives out by definition.
    hessian = np.asarray(jax.jit(jax.hessian(lambda x: measure(x)[1]))(vector), np.float64)
    expected, kl, tries, scale, rest = numpy_trust_region(
        np.asarray(vector, np.float64),
        lambda x: tuple(map(float, measure(jnp.asarray(x, jnp.float32)))),
        lambda x: np.asarray(gradient(jnp.asarray(x, jnp.float32)), np.float64),
        lambda v: hessian @ v,
        max_kl=0.01,
        cg_steps=3,
        damping=0.01,
    )
    moved = np.asarray(jax.flatten_util.ravel_pytree(after.meta_params)[0]) - vector
    np.testing.assert_allclose(moved, expected - np.asarray(vector), rtol=0.02, atol=2e-4)
    assert int(metrics["line_search_steps"]) == tries
    assert float(metrics["kl"]) == pytest.approx(kl, rel=0.02)
    assert float(metrics["cg_residual"]) == pytest.approx(rest, rel=0.02)
    assert 0 < float(metrics["kl"]) <= 0.01
    assert float(metrics["improvement"]) > 0
    parts = [jax.tree.map(lambda x, k=k: x[:, k], batch.support) for k in range(num_steps)]
    told = [numpy_returns_and_entropies(part) for part in (*parts, batch.query)]
    np.testing.assert_allclose(metrics["return"], [x[0] for x in told], rtol=1e-4)
    np.testing.assert_allclose(metrics["entropy"], [x[1] for x in told], rtol=1e-4)
    assert float(metrics["env_steps"]) == 4 * (num_steps + 1) * 4 * chase().horizon
    assert float(metrics["failures"]) == 0
    assert int(after.step) == 1
    assert float(after.opt_state) == pytest.approx(scale, rel=0.02)


def test_the_search_begins_where_the_last_one_ended():
    _, learner, update = maml_trpo()
    start, rng = learner.init(START), jax.random.key(3)

    def step_from(scale):
        after, metrics = update(start._replace(opt_state=jnp.asarray(scale)), episodes(), rng)
        assert int(metrics["line_search_steps"]) == 1
        moved = jax.tree.map(jnp.subtract, after.meta_params, start.meta_params)
        return after, moved, float(metrics["kl"])

    _, long, _ = step_from(0.2)
    short, moved, kl = step_from(0.1)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(2 * x, y, atol=1e-5), moved, long)
    # Well within the constraint, so that the next search takes longer steps again.
    expected = min(1.0, 0.1 * (0.9 * 0.01 / kl) ** 0.5)
    assert float(short.opt_state) == pytest.approx(expected, rel=1e-3)
    assert expected > 0.5


@SLOW
def test_chunks_and_devices_change_nothing():
    updates = []
    for chunk, devices in ((4, 1), (2, 1), (1, 2)):
        _, learner, update = maml_trpo(task_chunk=chunk, devices=devices)
        updates.append(update(learner.init(START), episodes(), jax.random.key(0)))
    for other in updates[1:]:
        assert_same(updates[0], other)


@pytest.mark.parametrize("outer", [pytest.param(rl.promp, marks=SLOW), rl.reptile])
def test_devices_change_nothing(outer):
    updates = []
    for mesh in (None, metajax.task_mesh(2)):
        learner = outer(adapting(), optax.adam(3e-3), mesh=mesh)
        state = learner.init(START)
        updates.append(jax.jit(learner.update)(state, episodes(), jax.random.key(0)))
    assert_same(*updates)


def assert_same(one, other):
    (a, metrics), (b, others) = one, other
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4),
        (a.meta_params, metrics),
        (b.meta_params, others),
    )


@SLOW
def test_what_is_not_finite_is_not_taken():
    """A policy that is NaN everywhere but at the start reverts the step."""

    def is_std(path):
        return "log_std" in jax.tree_util.keystr(path)

    def cliff(params, observations):
        normal = MODEL.apply(params, observations)
        moved = jnp.any(params["params"]["log_std"] != MODEL.init_log_std)
        return normal._replace(mean=jnp.where(moved, jnp.nan, normal.mean))

    # What adaptation leaves alone, the outer step moves.
    inner = metajax.adapt_only(optax.sgd(0.3), lambda path: not is_std(path))
    loop = rl.inner_loop(cliff, rl.sampler(chase(), cliff, 4), inner)
    learner = rl.maml_trpo(loop, max_kl=1.0, max_backtracks=3)
    state = learner.init(START)
    after, metrics = jax.jit(learner.update)(state, episodes(), jax.random.key(0))
    assert float(metrics["accepted"]) == 0
    assert float(metrics["meta_gradient_norm"]) > 0
    assert int(metrics["line_search_steps"]) == 3
    assert float(metrics["kl"]) == 0
    jax.tree.map(np.testing.assert_array_equal, after.meta_params, state.meta_params)


def test_a_task_of_broken_physics_leaves_the_others_whole():
    _, learner, update = maml_trpo()
    tasks, start = episodes(), learner.init(START)
    goals = tasks.support["goal"]

    def after(goals):
        return update(start, tasks._replace(support={"goal": goals}), jax.random.key(0))

    state, metrics = after(goals.at[0].set(3.0))
    assert float(metrics["failures"]) == 2 * 4
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state, metrics)))
    assert float(metrics["accepted"]) == 1

    # With nothing left to learn from, the step itself is not finite: it is reverted.
    state, metrics = after(jnp.full_like(goals, 3.0))
    assert float(metrics["failures"]) == 4 * 2 * 4
    assert float(metrics["accepted"]) == 0
    jax.tree.map(np.testing.assert_array_equal, state.meta_params, start.meta_params)


@SLOW
@pytest.mark.parametrize(
    "build",
    [
        lambda: rl.maml_trpo(adapting(num_steps=2), task_chunk=1),
        lambda: rl.maml_trpo(adapting(optimizer=metajax.learned_step_sizes(0.3))),
        lambda: rl.promp(adapting(), optax.adam(3e-3), task_chunk=1),
        lambda: rl.reptile(adapting(), optax.sgd(0.5)),
    ],
    ids=["trpo", "learned step sizes", "promp", "reptile"],
)
def test_learners_learn_and_adapt(build):
    learner = build()
    tasks = rl.Tasks(chase().sample_tasks)

    @jax.jit
    def train(state):
        def body(state, step):
            a, b = jax.random.split(jax.random.fold_in(jax.random.key(5), step))
            state, metrics = learner.update(state, metajax.tasks.meta_batch(tasks, 8, a), b)
            return state, metrics["objective"]

        return jax.lax.scan(body, state, jnp.arange(25))

    state, objectives = train(learner.init(START))
    assert np.isfinite(objectives).all()
    adapt = adapting(trajectories=8, optimizer=optax.sgd(0.3)).collect
    metric = rl.policy_return(chase(), MODEL.apply, 8)
    score = jax.jit(lambda s: metajax.evaluate(adapt, metric, s, episodes(16), jax.random.key(9)))
    plain = metajax.maml(lambda p, b, r: (0.0, {}), optax.sgd(0.3), optax.sgd(0.3)).init(START)
    trained = score(plain._replace(meta_params=metajax.MetaParams(state.meta_params.params)))
    before = score(plain)["mean"]
    assert trained["mean"].shape == (2,)
    assert float(trained["mean"][1]) > float(before[1]) + 0.3
    adapted = learner.adapt(state, {"goal": jnp.ones(2)}, jax.random.key(0))
    assert jax.tree.structure(adapted) == jax.tree.structure(START)


@SLOW
def test_seeds_run_side_by_side():
    _, learner, update = maml_trpo()
    keys = jax.random.split(jax.random.key(0), 2)
    state = learner.init(START)
    both, _ = jax.jit(jax.vmap(lambda key: learner.update(state, episodes(), key)))(keys)
    one, _ = update(state, episodes(), keys[1])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x[1], y, rtol=1e-3, atol=1e-4), both, one)


@pytest.mark.parametrize(
    "arguments",
    [{"max_kl": 0.0}, {"cg_steps": 0}, {"backtrack": 1.0}, {"curvature_stride": 0}],
)
def test_arguments_of_maml_trpo(arguments):
    with pytest.raises(ValueError, match="maml_trpo"):
        rl.maml_trpo(adapting(), **arguments)


@pytest.mark.parametrize("arguments", [{"num_epochs": 0}, {"clip": 0.0}, {"kl_penalty": -1.0}])
def test_arguments_of_promp(arguments):
    with pytest.raises(ValueError, match="promp"):
        rl.promp(adapting(), optax.sgd(0.1), **arguments)


def test_maml_trpo_refuses_what_forward_mode_does_not_cross():
    with pytest.raises(ValueError, match="must support forward mode"):
        rl.maml_trpo(adapting(meta_gradient=metajax.mixed_mode()))
