"""Wrong arguments and mismatched data: the message names the cause, both sizes, the remedy."""

import jax
import jax.numpy as jnp
import optax
import pytest

import metajax
from tests.helpers import mlp_loss, mlp_params, regression

SGD = optax.sgd(0.1)
KEY = jax.random.key(0)


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
        (lambda: inner(proximal=-1.0), "proximal must not be negative, got -1.0"),
        (lambda: inner(carry="parallel"), "carry must be one of .* got 'parallel'"),
        (lambda: metajax.implicit(cg_steps=0), "cg_steps must be a positive integer, got 0"),
        (lambda: inner(meta_gradient=metajax.implicit()), "requires proximal > 0"),
        (
            lambda: inner(meta_gradient=metajax.implicit(), proximal=1.0, batches=metajax.cycle(2)),
            r"requires batches=full_batch\(\)",
        ),
        (
            lambda: inner(
                meta_gradient=metajax.implicit(),
                proximal=1.0,
                optimizer=metajax.learned_step_sizes(0.1),
            ),
            "without learned hyper-parameters",
        ),
        (
            lambda: metajax.anil(mlp_loss, SGD, SGD, head=bool, meta_gradient=metajax.implicit()),
            "anil: implicit.* needs every parameter",
        ),
        (lambda: metajax.reptile(mlp_loss, SGD, SGD, num_steps=0), "at least 1"),
        (lambda: metajax.maml(mlp_loss, SGD, 0.1), "outer optimizer must be an optax"),
        (lambda: metajax.maml(mlp_loss, SGD, SGD, task_chunk=0), "task_chunk must be a positive"),
        (lambda: metajax.meta_learner(SGD, mlp_loss, SGD), "adapt must come from inner_loop"),
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
    with pytest.raises(ValueError, match=rf"accepted {found} of \[0\]\['b'\], \[0\]\['w'\]"):
        learner.init(mlp_params())


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"w": jnp.arange(3)}, r"params\['w'\] is int32"),
        ({"w": jnp.ones(3), "activation": jnp.tanh}, r"\['activation'\] is"),
    ],
)
def test_parameters_that_cannot_be_adapted(params, message):
    with pytest.raises(ValueError, match=message + ".*equinox.partition"):
        metajax.maml(mlp_loss, SGD, SGD).init(params)


def update(loss=mlp_loss, episodes=None, state=None, adapt=None):
    learner = metajax.maml(loss, SGD, SGD)
    state = learner.init(mlp_params()) if state is None else state
    return learner.update(state, regression(tasks=2) if episodes is None else episodes, KEY)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda value: value, r"must return \(scalar, metrics\)"),
        (lambda value: (jnp.stack([value, value]), {}), r"a scalar, it returned shape \(2,\)"),
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
        (metajax.Episode((), ()), "the meta-batch is empty"),
        (metajax.Episode(jnp.ones((0, 2)), jnp.ones((0, 2))), "the meta-batch is empty"),
        ({"support": 1, "query": 2}, "expected a metajax.Episode.*got dict"),
    ],
)
def test_what_is_no_meta_batch(episodes, message):
    with pytest.raises(ValueError, match=message):
        update(episodes=episodes)


def test_parameters_in_place_of_the_state():
    with pytest.raises(ValueError, match=r"expected the MetaState that learner\.init"):
        update(state=mlp_params())
    with pytest.raises(ValueError, match="expected the MetaState"):
        metajax.maml(mlp_loss, SGD, SGD).adapt(mlp_params(), regression().support, KEY)


@pytest.mark.parametrize("weights", [[1.0], [0.3, 0.3, 0.4]])
def test_as_many_weights_as_steps(weights):
    adapt = metajax.inner_loop(mlp_loss, SGD, 2)
    learner = metajax.meta_learner(adapt, metajax.multi_step_query_loss(mlp_loss, weights), SGD)
    with pytest.raises(ValueError, match=f"2 adaptation steps .* got {len(weights)}"):
        learner.update(learner.init(mlp_params()), regression(tasks=2), KEY)


def test_the_multi_step_loss_needs_the_gradient_of_every_step():
    adapt = inner(meta_gradient=metajax.implicit(), proximal=1.0)
    learner = metajax.meta_learner(adapt, metajax.multi_step_query_loss(mlp_loss), SGD)
    with pytest.raises(ValueError, match=r"implicit.* has only that of the final parameters"):
        learner.update(learner.init(mlp_params()), regression(tasks=2), KEY)
