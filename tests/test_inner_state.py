"""A state beside the parameters: running statistics against loops by hand, and how it flows."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import metajax
from tests.helpers import RECORDER, assert_close

KEY = jax.random.key(0)
TASKS, STEPS, RATE, MOMENTUM = 3, 2, 0.1, 0.9


def data(seed, tasks=TASKS):
    rng = np.random.default_rng(seed)

    def batch():
        x = jnp.asarray(rng.normal(size=(tasks, 6, 4), loc=1.0), jnp.float32)
        return x, jnp.tanh(x.sum(-1, keepdims=True))

    return metajax.Episode(batch(), batch())


def linen_model():
    from flax import linen

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x, train):
            x = linen.Dense(5)(x)
            x = linen.BatchNorm(use_running_average=not train, momentum=MOMENTUM)(x)
            return linen.Dense(1)(jnp.tanh(x))

    model = Model()
    variables = model.init(KEY, jnp.zeros((1, 4)), train=False)

    def forward(params, state, x):
        return model.apply(
            {"params": params, "batch_stats": state}, x, train=True, mutable=["batch_stats"]
        )

    def run(params, state, x):
        y, written = forward(params, state, x)
        return y, written["batch_stats"]

    def predict(params, state, x):
        return model.apply({"params": params, "batch_stats": state}, x, train=False)

    return variables["params"], variables["batch_stats"], run, predict


def nnx_model():
    from flax import nnx

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(4, 5, rngs=rngs)
            self.norm = nnx.BatchNorm(5, momentum=MOMENTUM, rngs=rngs)
            self.last = nnx.Linear(5, 1, rngs=rngs)

        def __call__(self, x):
            return self.last(jnp.tanh(self.norm(self.first(x))))

    graph, params, state = nnx.split(Model(nnx.Rngs(0)), nnx.Param, ...)

    def run(params, state, x):
        model = nnx.merge(graph, params, state)
        model.train()
        y = model(x)
        return y, nnx.state(model, nnx.Not(nnx.Param))

    def predict(params, state, x):
        model = nnx.merge(graph, params, state)
        model.eval()
        return model(x)

    return params, state, run, predict


MODELS = {"linen": linen_model, "nnx": nnx_model}


def make(model):
    params, state, run, predict = MODELS[model]()

    def loss(stateful, batch, rng):
        x, y = batch
        out, written = run(stateful.params, stateful.state, x)
        return jnp.mean((out - y) ** 2), {}, written

    return metajax.Stateful(params, state), run, predict, loss


def by_hand(stateful, run, episodes):
    """MAML with running averages: every task from the same ones, their ends averaged."""

    def task_loss(params, state, batch):
        out, written = run(params, jax.tree.map(lambda x: x, state), batch[0])
        return jnp.mean((out - batch[1]) ** 2), jax.lax.stop_gradient(written)

    def total(params):
        losses, ends = [], []
        for task in range(TASKS):
            support, query = jax.tree.map(lambda x, i=task: x[i], tuple(episodes))
            adapted, state = params, stateful.state
            for _ in range(STEPS):
                grads, state = jax.grad(task_loss, has_aux=True)(adapted, state, support)
                adapted = jax.tree.map(lambda p, g: p - RATE * g, adapted, grads)
            value, state = task_loss(adapted, state, query)
            losses.append(value)
            ends.append(state)
        return sum(losses) / TASKS, jax.tree.map(lambda *xs: sum(xs) / TASKS, *ends)

    return jax.jit(jax.grad(total, has_aux=True))(stateful.params)


@pytest.mark.parametrize("chunk", [None, 1, 2])
@pytest.mark.parametrize("model", MODELS)
def test_running_averages_are_those_of_a_loop_by_hand(model, chunk):
    stateful, run, _, loss = make(model)
    learner = metajax.maml(loss, optax.sgd(RATE), RECORDER, num_steps=STEPS, task_chunk=chunk)
    episodes = data(0)
    state = learner.init(stateful)
    state, _ = jax.jit(learner.update)(state, episodes, KEY)
    gradient, ended = by_hand(stateful, run, episodes)
    assert_close(jax.tree.leaves(state.opt_state.trace), jax.tree.leaves(gradient), rtol=1e-4)
    assert_close(jax.tree.leaves(state.inner_state.model), jax.tree.leaves(ended))


@pytest.mark.parametrize(
    "engine",
    [
        metajax.second_order(remat=True),
        metajax.mixed_mode(),
        metajax.first_order(),
        metajax.implicit(),
    ],
)
def test_every_engine_hands_the_state_on(engine):
    stateful, run, _, loss = make("linen")
    adapt = metajax.inner_loop(
        loss, optax.sgd(RATE), STEPS, meta_gradient=engine, proximal=1e-9 * engine.implicit
    )
    learner = metajax.meta_learner(adapt, metajax.query_loss(loss), optax.sgd(0.0))
    state, _ = jax.jit(learner.update)(learner.init(stateful), data(0), KEY)
    assert_close(state.inner_state.model, by_hand(stateful, run, data(0))[1])


@pytest.mark.parametrize(
    "engine",
    [
        metajax.second_order(),
        metajax.second_order(remat=True),
        metajax.mixed_mode(),
        metajax.first_order(),
    ],
)
def test_no_derivative_crosses_the_state(engine):
    def loss(model, batch, rng):
        # The state is the parameter itself, as an average is of it.
        return (model.params - batch) ** 2 / 2 + 5.0 * model.state, {}, model.params

    adapt = metajax.inner_loop(loss, optax.sgd(0.1), 2, meta_gradient=engine)
    learner = metajax.meta_learner(adapt, metajax.query_loss(loss), optax.sgd(1.0))
    state = learner.init(metajax.Stateful(jnp.asarray(3.0), jnp.zeros(())))
    episodes = metajax.Episode(jnp.ones(1), jnp.zeros(1))
    after, metrics = learner.update(state, episodes, KEY)
    adapted = 1 + 0.9**2 * 2.0
    crossed = 1.0 if engine == metajax.first_order() else 0.9**2
    assert_close(after.meta_params.params, 3.0 - crossed * adapted)
    # The query reads what the last inner step wrote: the parameter before that step.
    assert_close(metrics["query_loss"], adapted**2 / 2 + 5.0 * (1 + 0.9 * 2.0))


def test_devices_share_the_state():
    stateful, _, _, loss = make("linen")
    both = [
        metajax.maml(loss, optax.sgd(RATE), optax.sgd(0.1), num_steps=STEPS, mesh=mesh)
        for mesh in (None, metajax.task_mesh(3))
    ]
    states = [jax.jit(each.update)(each.init(stateful), data(0), KEY)[0] for each in both]
    assert_close(states[0].inner_state.model, states[1].inner_state.model)
    assert_close(states[0].meta_params, states[1].meta_params)


def test_adaptation_and_evaluation_use_it():
    stateful, _, predict, loss = make("linen")
    learner = metajax.maml(loss, optax.sgd(RATE), optax.sgd(0.1), num_steps=STEPS)
    state, _ = jax.jit(learner.update)(learner.init(stateful), data(0), KEY)
    one = jax.tree.map(lambda x: x[0], data(1))
    adapted = learner.adapt(state, one.support, KEY)
    assert isinstance(adapted, metajax.Stateful)

    metric = metajax.mse(lambda s, x: predict(s.params, s.state, x))
    scores = metajax.evaluate(
        metajax.inner_loop(loss, optax.sgd(RATE), STEPS),
        metric,
        state,
        jax.tree.map(lambda x: x[None], one),
        KEY,
    )
    assert_close(scores["mean"][-1], metric(adapted, one, KEY))


def test_an_objective_that_only_measures_hands_on_the_state_of_the_support():
    stateful, _, _, loss = make("linen")
    for learner in (
        metajax.reptile(loss, optax.sgd(RATE), optax.sgd(0.1), num_steps=STEPS),
        metajax.meta_learner(
            metajax.inner_loop(loss, optax.sgd(RATE), STEPS), metajax.last_update(), optax.sgd(0.1)
        ),
    ):
        state, _ = jax.jit(learner.update)(learner.init(stateful), data(0), KEY)
        moved = jax.tree.map(
            lambda a, b: jnp.abs(a - b).max(), state.inner_state.model, stateful.state
        )
        assert min(jax.tree.leaves(moved)) > 0


def test_counts_and_keys_of_random_numbers_flow():
    from flax import nnx

    class Noisy(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(4, 1, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.linear(self.dropout(x))

    graph, params, rest = nnx.split(Noisy(nnx.Rngs(0)), nnx.Param, ...)

    def loss(stateful, batch, rng):
        model = nnx.merge(graph, stateful.params, stateful.state)
        value = jnp.mean((model(batch[0]) - batch[1]) ** 2)
        return value, {}, nnx.state(model, nnx.Not(nnx.Param))

    for chunk in (None, 1):
        learner = metajax.maml(
            loss, optax.sgd(RATE), optax.sgd(0.1), num_steps=STEPS, task_chunk=chunk
        )
        state = learner.init(metajax.Stateful(params, rest))
        update = jax.jit(learner.update)
        for _ in range(2):
            state, _ = update(state, data(0), KEY)
        counts = [x for x in jax.tree.leaves(state.inner_state.model) if x.dtype == jnp.uint32]
        assert [int(x) for x in counts] == [2 * (STEPS + 1)]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (jnp.zeros(3), r"given the state .*float32\[\].* and returned .*float32\[3\]"),
        ({"mean": jnp.zeros(())}, "returned .*mean"),
    ],
)
def test_a_state_of_another_shape(written, message):
    def loss(stateful, batch, rng):
        return jnp.sum(stateful.params**2), {}, written

    learner = metajax.maml(loss, optax.sgd(RATE), optax.sgd(0.1))
    state = learner.init(metajax.Stateful(jnp.ones(2), jnp.zeros(())))
    with pytest.raises(ValueError, match=message):
        learner.update(state, data(0), KEY)


def test_a_state_that_training_did_not_start_with():
    def loss(params, batch, rng):
        return jnp.sum(params**2), {}, jnp.zeros(())

    learner = metajax.maml(loss, optax.sgd(RATE), optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"metajax.Stateful\(params, state\)"):
        learner.update(learner.init(jnp.ones(2)), data(0), KEY)


def test_an_nnx_module_passed_whole():
    from flax import nnx

    with pytest.raises(ValueError, match=r"use nnx\.split"):
        metajax.maml(lambda *_: (0.0, {}), optax.sgd(0.1), optax.sgd(0.1)).init(
            nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        )
    # Its parts are states, and fine.
    params = nnx.split(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))[1]
    metajax.maml(lambda *_: (0.0, {}), optax.sgd(0.1), optax.sgd(0.1)).init(params)


def test_shared_weights_of_equinox():
    eqx = pytest.importorskip("equinox")

    class Tied(eqx.Module):
        encoder: jax.Array
        decoder: jax.Array

    weight = jnp.ones((2, 2))

    def loss(model, x, rng):
        tied = model() if isinstance(model, eqx.nn.Shared) else model
        return jnp.mean((x @ tied.encoder @ tied.decoder - x) ** 2), {}

    learner = metajax.maml(loss, optax.sgd(0.1), optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"params.encoder and params.decoder of Tied are one"):
        learner.init(Tied(weight, weight))
    shared = eqx.nn.Shared(Tied(weight, weight), lambda m: m.decoder, lambda m: m.encoder)
    params, static = eqx.partition(shared, eqx.is_array)
    learner = metajax.maml(
        lambda p, x, rng: loss(eqx.combine(p, static), x, rng), optax.sgd(0.1), optax.sgd(0.1)
    )
    x = jnp.asarray([[1.0, 2.0]])
    adapted = eqx.combine(learner.adapt(learner.init(params), x, KEY), static)()
    np.testing.assert_array_equal(adapted.encoder, adapted.decoder)
    gradient = jax.grad(lambda w: jnp.mean((x @ w @ w - x) ** 2))(weight)
    assert_close(adapted.encoder, weight - 0.1 * gradient)


def test_the_state_that_a_start_leaves_is_the_newest():
    def loss(model, batch, rng):
        return jnp.mean((model.params - batch) ** 2), {}, model.state + 1

    def start(meta_params, support, rng):
        model = meta_params.params
        return metajax.Stateful(model.params, model.state + 100)

    steps = metajax.inner_loop(loss, optax.sgd(0.1), num_steps=2)
    for before, expected in ((start, 107), (start_by(steps), 9)):
        adapt = metajax.start_from(before, steps)
        learner = metajax.meta_learner(adapt, metajax.query_loss(loss), optax.sgd(0.1))
        state = learner.init(metajax.Stateful(jnp.zeros(()), jnp.float32(5)))
        adapted = learner.adapt(state, jnp.ones(3), jax.random.key(0))
        assert float(adapted.state) == expected


def start_by(adapt):
    """Another inner loop as a start."""
    return lambda meta_params, support, rng: adapt.apply(meta_params, support, rng)[0]


class Tied(nnx.Module):
    def __init__(self):
        self.first = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        self.second = self.first


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {"m": m}, lambda m: [m]])
def test_a_module_is_refused_wherever_it_is(wrap):
    adapt = metajax.inner_loop(lambda p, b, r: (jnp.zeros(()), {}), optax.sgd(0.1), 1)
    with pytest.raises(ValueError, match="is the NNX module Tied"):
        adapt.init(wrap(Tied()))
    with pytest.raises(ValueError, match="is the NNX module Tied"):
        adapt.apply(metajax.MetaParams(wrap(Tied())), jnp.ones(3), jax.random.key(0))
