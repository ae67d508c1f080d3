"""Wrong arguments and mismatched data: the message names the cause, both sizes, the remedy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from tests.helpers import mlp_loss, mlp_params, regression

SGD = optax.sgd(0.1)
KEY = jax.random.key(0)


def update_without_queries(objective):
    learner = metajax.meta_learner(inner(), objective(mlp_loss), SGD)
    support, _ = regression(tasks=2)
    query = jax.tree.map(lambda x: x[:, :0], support)
    params = mlp_params()
    learner.update(learner.init(params), metajax.Episode(support, query), KEY)


def inner(**kwargs):
    arguments = {"loss": mlp_loss, "optimizer": SGD, "num_steps": 1, **kwargs}
    return metajax.inner_loop(**arguments)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: inner(loss=3), "loss must be a function"),
        (lambda: inner(optimizer=0.1), "must be an optax transformation such as optax.sgd"),
        (lambda: inner(num_steps=1.5), "non-negative integer, got 1.5"),
        (lambda: inner(num_steps=-1), "non-negative integer, got -1"),
        (lambda: inner(num_steps=True), "non-negative integer, got True"),
        (lambda: inner(meta_gradient=metajax.second_order), "mind the parentheses"),
        (lambda: inner(proximal=-1.0), "proximal must be a number in .*, got -1.0"),
        (lambda: inner(carry="parallel"), "carry must be one of .* got 'parallel'"),
        (lambda: metajax.implicit(cg_steps=0), "cg_steps must be a positive integer, got 0"),
        (lambda: inner(meta_gradient=metajax.implicit()), "requires proximal > 0"),
        (
            lambda: inner(meta_gradient=metajax.implicit(), proximal=1.0, batches=metajax.cycle(2)),
            r"requires .*batches=full_batch\(\)",
        ),
        (
            lambda: inner(
                meta_gradient=metajax.implicit(),
                proximal=1.0,
                optimizer=metajax.learned_step_sizes(0.1),
            ).init(mlp_params()),
            "without learned hyper-parameters",
        ),
        (lambda: inner(proximal=float("nan")), "proximal must be .* got nan"),
        (lambda: inner(proximal="1"), "proximal must be .* got '1'"),
        (lambda: inner(proximal=jnp.ones(2)), "proximal must be .* got float32"),
        (lambda: inner(proximal=True), "proximal must be .* got True"),
        (lambda: inner(unroll=0), "unroll must be a positive integer, got 0"),
        (
            lambda: inner(loss=lambda params, batch: 0.0),
            r"loss must be a function \(params, batch, r",
        ),
        (lambda: inner(batches=4), r"batches must be a function \(support, .* got 4"),
        (lambda: inner(batches=metajax.full_batch), r"batches must .*full_batch\(\).*parentheses"),
        (lambda: inner(batches=metajax.cycle), r"batches must .*cycle\(size\) \(mind the parenth"),
        (lambda: metajax.cycle(True), "batch_size must be a positive integer, got True"),
        (lambda: metajax.implicit(cg_steps=True), "cg_steps must be a positive integer, got True"),
        (
            lambda: metajax.maml(mlp_loss, SGD, SGD, task_chunk=True),
            "task_chunk must be .* got True",
        ),
        (
            lambda: metajax.query_loss(3),
            r"query_loss: loss must be a function \(params, batch, rng\)",
        ),
        (lambda: metajax.multi_step_query_loss(None), "multi_step_query_loss: loss must be"),
        (lambda: metajax.displacement(3), "displacement: loss must be"),
        (lambda: update_without_queries(metajax.query_loss), "query_loss: the query set has no"),
        (
            lambda: update_without_queries(metajax.multi_step_query_loss),
            "multi_step_query_loss: the query set has no examples",
        ),
        (lambda: metajax.last_update(3), "last_update: loss must be"),
        (
            lambda: metajax.last_update(tail=SGD),
            "tail must be of type Adapt",
        ),
        (
            lambda: metajax.meta_learner(inner(), metajax.query_loss, SGD),
            r"objective must be a function .* such as query_loss\(loss\)",
        ),
        (lambda: metajax.meta_learner(inner(), mlp_loss, SGD), "objective must be a function"),
        (lambda: metajax.anil(mlp_loss, SGD, SGD, head="a"), r"a function \(path\), got 'a'"),
        (lambda: metajax.boil(mlp_loss, SGD, SGD, head="a"), r"a function \(path\), got 'a'"),
        (lambda: metajax.reptile(mlp_loss, SGD, SGD, num_steps=0), "num_steps must be a positive"),
        (lambda: metajax.maml(mlp_loss, SGD, 0.1), "outer optimizer must be an optax"),
        (lambda: metajax.maml(mlp_loss, SGD, SGD, task_chunk=0), "task_chunk must be a positive"),
        (
            lambda: metajax.meta_learner(SGD, mlp_loss, SGD),
            "adapt must be of type Adapt",
        ),
        (lambda: metajax.meta_learner(inner(), None, SGD), "objective must be a function"),
    ],
)
def test_building_with_wrong_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("accept", "found"), [(lambda path: False, "none"), (lambda path: True, "all")]
)
def test_a_head_that_is_nothing_or_everything(accept, found):
    learner = metajax.anil(mlp_loss, SGD, SGD, head=accept)
    with pytest.raises(ValueError, match=rf"{found} of \[0\]\['b'\], \[0\]\['w'\]"):
        learner.init(mlp_params())


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"w": jnp.arange(3)}, r"params\['w'\] is int32.*equinox.partition"),
        ({"w": jnp.ones(3), "activation": jnp.tanh}, r"\['activation'\] is.*equinox.partition"),
        ({}, "nothing to adapt"),
    ],
)
def test_parameters_that_cannot_be_adapted(params, message):
    with pytest.raises(ValueError, match=message):
        metajax.maml(mlp_loss, SGD, SGD).init(params)


def update(loss=mlp_loss, episodes=None, state=None, adapt=None):
    learner = metajax.maml(loss, SGD, SGD)
    state = learner.init(mlp_params()) if state is None else state
    return learner.update(state, regression(tasks=2) if episodes is None else episodes, KEY)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda value: value, r"must return \(scalar, metrics\)"),
        (
            lambda value: (jnp.stack([value, value]), {}),
            r"scalar.* returned float32\[2\]",
        ),
        (lambda value: (1, {}), r"floating-point scalar.* returned int32\[\]"),
        (lambda value: (value, {"name": "mse"}), r"metrics\['name'\] is str"),
    ],
)
def test_a_loss_that_is_none(result, message):
    with pytest.raises(ValueError, match=message):
        update(lambda params, batch, rng: result(mlp_loss(params, batch, rng)[0]))


def test_support_and_query_of_different_numbers_of_tasks():
    episodes = metajax.Episode(regression(tasks=4).support, regression(tasks=5).query)
    message = r"episodes.query\[0\] has 5 tasks .*episodes.support\[0\] has 4"
    with pytest.raises(ValueError, match=message):
        update(episodes=episodes)


@pytest.mark.parametrize(
    ("episodes", "message"),
    [
        (metajax.Episode(jnp.ones(()), jnp.ones(())), "episodes.support is a scalar.*add the axis"),
        (metajax.Episode((), ()), "no tasks in episodes"),
        (metajax.Episode(jnp.ones((0, 2)), jnp.ones((0, 2))), "no tasks in episodes"),
        ({"support": 1, "query": 2}, "of type Episode, of support= and query=; got dict"),
    ],
)
def test_what_is_no_meta_batch(episodes, message):
    with pytest.raises(ValueError, match=message):
        update(episodes=episodes)


def test_parameters_in_place_of_the_state():
    with pytest.raises(ValueError, match=r"of type MetaState, from learner\.init"):
        update(state=mlp_params())
    with pytest.raises(ValueError, match="of type MetaState"):
        metajax.maml(mlp_loss, SGD, SGD).adapt(mlp_params(), regression().support, KEY)


@pytest.mark.parametrize("weights", [[1.0], [0.3, 0.3, 0.4]])
def test_as_many_weights_as_steps(weights):
    adapt = metajax.inner_loop(mlp_loss, SGD, 2)
    learner = metajax.meta_learner(adapt, metajax.multi_step_query_loss(mlp_loss, weights), SGD)
    with pytest.raises(ValueError, match=rf"2 adaptation steps .*the shape \({len(weights)},\)"):
        learner.update(learner.init(mlp_params()), regression(tasks=2), KEY)


def test_the_multi_step_loss_needs_the_gradient_of_every_step():
    adapt = inner(meta_gradient=metajax.implicit(), proximal=1.0)
    learner = metajax.meta_learner(adapt, metajax.multi_step_query_loss(mlp_loss), SGD)
    with pytest.raises(ValueError, match=r"implicit.* has only that of the final parameters"):
        learner.update(learner.init(mlp_params()), regression(tasks=2), KEY)


def test_numpy_integers_count_as_integers():
    two = np.int64(2)
    learner = metajax.meta_learner(
        inner(num_steps=two, unroll=two, batches=metajax.cycle(two)),
        metajax.query_loss(mlp_loss),
        SGD,
        task_chunk=two,
    )
    state = learner.init(mlp_params())
    _, metrics = jax.jit(learner.update)(state, regression(tasks=4), KEY)
    assert metrics["support_loss"].shape == (2,)
    metajax.implicit(cg_steps=two)


def test_an_optimizer_that_asks_for_more():
    asking = optax.GradientTransformationExtraArgs(
        lambda params: (), lambda grads, state, params, *, hessian, **_: (hessian, state)
    )
    learner = metajax.fomaml(mlp_loss, asking, SGD)
    with pytest.raises(ValueError, match=r"the inner optimizer's update cannot.*'hessian'"):
        learner.update(learner.init(mlp_params()), regression(tasks=2), KEY)


def test_the_outer_optimizer_is_told_the_objective():
    with pytest.raises(ValueError, match=r"the outer optimizer's update cannot.*'value_fn'"):
        metajax.maml(mlp_loss, SGD, optax.lbfgs()).init(mlp_params())
    plateau = optax.contrib.reduce_on_plateau(accumulation_size=2)
    learner = metajax.maml(mlp_loss, SGD, optax.chain(SGD, plateau))
    state, metrics = learner.update(learner.init(mlp_params()), regression(tasks=2), KEY)
    assert state.opt_state[1].avg_value == metrics["objective"]


def test_the_state_of_a_learner_with_other_inner_parameters():
    params, episodes = mlp_params(), regression(tasks=2)
    plain = metajax.maml(mlp_loss, SGD, SGD)
    learned = metajax.meta_sgd(mlp_loss, SGD)
    single = metajax.LearnedOptimizer(lambda params: {"rate": 0.1}, lambda h: optax.sgd(h["rate"]))
    for learner, state, message in [
        (plain, learned.init(params), r"learned inner.* is .* in the state, absent here"),
        (learned, plain.init(params), r"learned inner.* is absent in the state"),
        (
            metajax.maml(mlp_loss, single, SGD),
            learned.init(params),
            r"learned inner.* in the state, .* here",
        ),
    ]:
        state = state._replace(opt_state=learner.init(params).opt_state)
        with pytest.raises(ValueError, match=message):
            learner.update(state, episodes, KEY)
        with pytest.raises(ValueError, match=message):
            learner.adapt(state, jax.tree.map(lambda x: x[0], episodes.support), KEY)
    with pytest.raises(ValueError, match="in the state, absent here"):
        metajax.evaluate(inner(), lambda *_: 0.0, learned.init(params), episodes, KEY)


def test_learned_hyper_parameters_are_floats():
    counted = metajax.LearnedOptimizer(lambda params: {"n": 3}, lambda h: optax.sgd(0.1 * h["n"]))
    with pytest.raises(ValueError, match=r"hyper-parameter inner\['n'\] is int32"):
        metajax.maml(mlp_loss, counted, SGD).init(mlp_params())


W = {"w": jnp.zeros(())}


def pull(params, x, rng):
    return jnp.mean((params["w"] - x) ** 2), {}


@pytest.mark.parametrize("num_sizes", [2, 10])
def test_learned_step_sizes_of_another_number_of_steps_are_refused(num_sizes):
    state = metajax.maml(pull, metajax.learned_per_step_sizes(0.1, 3), SGD, num_steps=3).init(W)
    other = metajax.maml(
        pull, metajax.learned_per_step_sizes(0.1, num_sizes), SGD, num_steps=num_sizes
    )
    with pytest.raises(
        ValueError, match=rf"inner\['w'\] is \(3,\) in the state, \({num_sizes},\) here"
    ):
        other.adapt(state, jnp.ones(()), jax.random.key(0))


def test_learned_step_sizes_of_another_shape_are_refused():
    learner = metajax.meta_sgd(pull, SGD)
    state = learner.init(W)
    wide = state._replace(meta_params=state.meta_params._replace(inner={"w": jnp.ones(4)}))
    with pytest.raises(ValueError, match=r"inner\['w'\] is \(4,\) in the state, \(\) here"):
        learner.adapt(wide, jnp.ones(()), jax.random.key(0))


def test_more_steps_than_were_learned_repeat_the_last_size():
    sizes = metajax.learned_per_step_sizes(0.1, 3)
    state = metajax.maml(pull, sizes, SGD, num_steps=3).init(W)
    adapt = metajax.inner_loop(pull, sizes, 10)
    adapted, _ = adapt.apply(state.meta_params, jnp.ones(()), jax.random.key(0))
    np.testing.assert_allclose(adapted["w"], 1 - 0.8**10, rtol=1e-6)  # .8926
