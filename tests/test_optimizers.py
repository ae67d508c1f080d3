"""Optimizers inside that see the loss, and outside that know the structure of the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from tests.helpers import assert_close, meta_gradient, mlp_loss, mlp_params, regression

KEY = jax.random.key(0)
SGD = optax.sgd(0.1)


def quadratic(p, batch, rng):
    return jnp.sum((p - batch) ** 2 * jnp.asarray([1.0, 4.0])) / 2, {}


START, TARGET = jnp.zeros(2), jnp.asarray([1.0, -1.0])
EPISODE = metajax.Episode(TARGET, TARGET)


@pytest.mark.usefixtures("float64")
def test_polyak_steps_see_the_value():
    """One step of `value / |gradient|^2` along the gradient, and its exact derivative."""
    start, target = (x.astype(jnp.float64) for x in (START, TARGET))
    adapt = metajax.inner_loop(quadratic, optax.polyak_sgd(max_learning_rate=10.0), 1)

    def by_hand(p):
        value, grad = jax.value_and_grad(lambda p: quadratic(p, target, KEY)[0])(p)
        return p - value / jnp.sum(grad**2) * grad

    adapted, _ = adapt.apply(metajax.MetaParams(start), target, KEY)
    assert_close(adapted, by_hand(start), rtol=1e-12)
    found = meta_gradient(adapt, metajax.query_loss(quadratic), start, EPISODE).params
    exact = jax.grad(lambda p: quadratic(by_hand(p), target, KEY)[0])(start)
    assert_close(found, exact, rtol=1e-8)


def test_polyak_steps_see_the_proximal_term():
    adapt = metajax.inner_loop(quadratic, optax.polyak_sgd(max_learning_rate=10.0), 2, proximal=3.0)
    p = START
    for _ in range(2):
        value, grad = jax.value_and_grad(
            lambda p: quadratic(p, TARGET, KEY)[0] + 1.5 * jnp.sum((p - START) ** 2)
        )(p)
        p = p - value / jnp.sum(grad**2) * grad
    assert_close(adapt.apply(metajax.MetaParams(START), TARGET, KEY)[0], p)


def test_polyak_steps_are_differentiated_by_every_exact_engine():
    found = []
    for engine in (metajax.second_order(), metajax.mixed_mode()):
        adapt = metajax.inner_loop(
            mlp_loss, optax.polyak_sgd(max_learning_rate=0.1), 2, meta_gradient=engine
        )
        found.append(meta_gradient(adapt, metajax.query_loss(mlp_loss), mlp_params(), regression()))
    assert_close(found[1], found[0], rtol=1e-4)


def test_first_order_does_not_differentiate_a_polyak_step():
    # The update is a constant, so this is the query gradient at the adapted parameters.
    engine = metajax.first_order()
    adapt = metajax.inner_loop(quadratic, optax.polyak_sgd(), 1, meta_gradient=engine)

    def query(start):
        adapted, _ = adapt.apply(metajax.MetaParams(start), TARGET, KEY)
        return quadratic(adapted, TARGET + 1, KEY)[0]

    adapted, _ = adapt.apply(metajax.MetaParams(START), TARGET, KEY)
    expected = jax.grad(lambda p: quadratic(p, TARGET + 1, KEY)[0])(adapted)
    assert_close(jax.grad(query)(START), expected)


def test_lbfgs_adapts_at_first_order():
    learner = metajax.fomaml(mlp_loss, optax.lbfgs(), SGD, num_steps=5)
    episodes = regression(tasks=3, dtype=jnp.float32)
    state, metrics = jax.jit(learner.update)(
        learner.init(mlp_params(dtype=jnp.float32)), episodes, KEY
    )
    assert metrics["support_loss"][-1] < 0.2 * metrics["support_loss"][0]
    # The gradient of the query loss where adaptation ended.
    one = jax.tree.map(lambda x: x[0], episodes)
    first = jax.tree.map(lambda x: x[:1], episodes)
    state = learner.init(mlp_params(dtype=jnp.float32))
    adapted = learner.adapt(state, one.support, jax.random.split(jax.random.split(KEY, 1)[0])[0])
    moved = learner.update(state, first, KEY)[0].meta_params.params
    gradient = jax.grad(lambda p: mlp_loss(p, one.query, KEY)[0])(adapted)
    by_hand = jax.tree.map(lambda p, g: p - 0.1 * g, state.meta_params.params, gradient)
    assert_close(moved, by_hand, rtol=1e-4)


@pytest.mark.usefixtures("float64")
def test_lbfgs_solves_the_problem_of_imaml():
    start, target = (x.astype(jnp.float64) for x in (START, TARGET))
    learner = metajax.imaml(
        quadratic, optax.lbfgs(), optax.sgd(1.0), num_steps=10, proximal=2.0, cg_steps=2
    )
    curvature = jnp.asarray([1.0, 4.0])
    solution = (curvature * target + 2 * start) / (curvature + 2)
    assert_close(learner.adapt(learner.init(start), target, KEY), solution, rtol=1e-6)
    episodes = jax.tree.map(lambda x: x[None], metajax.Episode(target, -target))
    moved = learner.update(learner.init(start), episodes, KEY)[0].meta_params.params
    gradient = 2 / (curvature + 2) * curvature * (solution + target)
    assert_close(moved, start - gradient, rtol=1e-6)


@pytest.mark.parametrize(
    "engine",
    [metajax.second_order(), metajax.second_order(remat=True), metajax.mixed_mode()],
)
def test_reverse_mode_through_a_line_search(engine):
    learner = metajax.maml(mlp_loss, optax.lbfgs(), SGD, num_steps=2, meta_gradient=engine)
    state = learner.init(mlp_params())
    with pytest.raises(ValueError, match=r"line search .*first_order\(\) or implicit\(\)"):
        learner.update(state, regression(tasks=2), KEY)


LABELS = [{"w": "slow", "b": "slow"}, {"w": "fast", "b": "fast"}]


def updated(outer, inner=None):
    learner = metajax.maml(mlp_loss, inner or SGD, outer)
    state = learner.init(mlp_params())
    return learner.update(state, regression(tasks=2), KEY)[0].meta_params


@pytest.mark.parametrize("outer", ["partition", "masked"])
def test_labels_of_the_parameters_are_lifted(outer):
    optimizer = {
        "partition": optax.partition({"slow": optax.sgd(0.1), "fast": optax.sgd(1.0)}, LABELS),
        "masked": optax.chain(
            SGD, optax.masked(optax.scale(10.0), jax.tree.map(lambda x: x == "fast", LABELS))
        ),
    }[outer]
    found = updated(metajax.on_params(optimizer)).params
    slow, fast = updated(optax.sgd(0.1)).params, updated(optax.sgd(1.0)).params
    assert_close(found, [slow[0], fast[1]])
    with pytest.raises(ValueError, match=r"MetaParams\(params, inner\).*metajax\.on_params"):
        updated(optimizer)


def test_learned_hyper_parameters_need_an_optimizer_of_theirs():
    sizes = metajax.learned_step_sizes(0.1)
    outer = metajax.on_params(optax.partition({"slow": SGD, "fast": SGD}, LABELS))
    with pytest.raises(ValueError, match=r"on_params\(optimizer, inner="):
        updated(outer, sizes)
    found = updated(
        metajax.on_params(
            optax.partition({"slow": SGD, "fast": SGD}, LABELS), inner=optax.sgd(0.01)
        ),
        sizes,
    )
    one, hundredth = updated(SGD, sizes), updated(optax.sgd(0.01), sizes)
    assert_close(found, metajax.MetaParams(one.params, hundredth.inner))


def test_lookahead_keeps_the_slow_parameters_in_its_state():
    episodes, params = regression(tasks=2), mlp_params()
    learner = metajax.maml(mlp_loss, SGD, metajax.lookahead(SGD, 2, 0.5))
    plain = metajax.maml(mlp_loss, SGD, SGD)
    state, fast = learner.init(params), plain.init(params)
    for _ in range(2):
        state, _ = learner.update(state, episodes, KEY)
        fast, _ = plain.update(fast, episodes, KEY)
    midway = jax.tree.map(lambda a, b: (a + b) / 2, params, fast.meta_params.params)
    assert_close(state.meta_params.params, midway)
    with pytest.raises(ValueError, match=r"metajax\.lookahead"):
        metajax.maml(mlp_loss, SGD, optax.lookahead(SGD, 2, 0.5)).init(params)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_rate_that_is_no_number(bad):
    for make in (metajax.learned_step_sizes, lambda r: metajax.learned_per_step_sizes(r, 3)):
        with pytest.raises(ValueError, match=f"learning_rate must be a number in .*, got {bad}"):
            make(bad)


def test_the_slow_parameters_of_lookahead_move_on():
    optimizer = metajax.lookahead(optax.sgd(1.0), sync_period=2, slow_step_size=0.5)
    params, found = jnp.zeros(()), []
    state = optimizer.init(params)
    for _ in range(4):
        updates, state = optimizer.update(jnp.ones(()), state, params)
        params = params + updates
        found.append(float(params))
    # Slow: 0, then half way to -2, then half way from -1 to -3.
    assert found == [-1.0, -1.0, -2.0, -2.0]


def test_first_order_stops_the_loss_s_value_as_well():
    def loss(p, target, rng):
        return (p - target) ** 2 / 2, {}

    learner = metajax.fomaml(loss, optax.polyak_sgd(max_learning_rate=1.0), optax.sgd(1.0))
    state = learner.init(jnp.asarray(3.0))
    episodes = metajax.Episode(jnp.ones(1), jnp.zeros(1))
    after, _ = learner.update(state, episodes, jax.random.key(0))
    # Half of the gradient of 2 is taken: 2 is adapted, whose query gradient is 2.
    np.testing.assert_allclose(after.meta_params.params, 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda inner: metajax.reptile(counted_loss, inner, optax.sgd(0.5), num_steps=3),
        lambda inner: metajax.fomaml(
            counted_loss, inner, optax.sgd(0.5), num_steps=3, tail="shared"
        ),
        lambda inner: metajax.fomaml(
            counted_loss, inner, optax.sgd(0.5), num_steps=3, tail="separate"
        ),
    ],
)
def test_the_outer_loop_does_not_learn_a_counter(make):
    learner = make(metajax.count_steps(optax.sgd(0.1), lambda path: path[0].key == "step"))
    state = learner.init({"w": jnp.zeros(()), "step": jnp.zeros(())})
    episodes = metajax.Episode(jnp.ones((2, 4)), jnp.ones((2, 4)))
    for _ in range(2):
        state, _ = learner.update(state, episodes, jax.random.key(0))
    assert float(state.meta_params.params["step"]) == 0.0
    assert float(state.meta_params.params["w"]) > 0.1


def counted_loss(params, batch, rng):
    return jnp.mean((params["w"] - batch) ** 2), {}


@pytest.mark.parametrize("carry", ["mean", "serial"])
def test_every_task_begins_with_the_first_step_size(carry):
    def loss(params, batch, rng):
        return jnp.mean((params - batch) ** 2) / 2, {}

    sizes = metajax.learned_per_step_sizes(0.1, 2)._replace(
        init=lambda params: jnp.asarray([0.1, 0.4])
    )
    learner = metajax.maml(loss, sizes, optax.sgd(0.0), num_steps=2, carry=carry)
    state = learner.init(jnp.zeros(()))
    batch = jnp.ones((3, 1))
    for _ in range(2):
        assert_close(learner.adapt(state, batch[0], jax.random.key(0)), jnp.asarray(0.46))
        state, _ = learner.update(state, metajax.Episode(batch, batch), jax.random.key(0))
