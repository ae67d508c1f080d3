"""Evaluation: means, intervals, steps, and what the metrics measure."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from tests.helpers import mlp, mlp_loss, mlp_params, regression

TASKS, STEPS = 7, 3
EPISODES = regression(tasks=TASKS, dtype=jnp.float32)
KEY = jax.random.key(0)


def setting(steps=STEPS):
    learner = metajax.maml(mlp_loss, optax.sgd(0.1), optax.sgd(0.1))
    state = learner.init(mlp_params(dtype=jnp.float32))
    return metajax.inner_loop(mlp_loss, optax.sgd(0.1), steps), state


def by_hand(steps):
    """The score of every task after `steps` steps of gradient descent."""
    scores = []
    for task in range(TASKS):
        (support, (x, y)) = jax.tree.map(lambda a, t=task: a[t], EPISODES)
        params = mlp_params(dtype=jnp.float32)
        for _ in range(steps):
            grads = jax.grad(lambda p, s=support: mlp_loss(p, s, None)[0])(params)
            params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
        scores.append(np.mean((np.asarray(mlp(params, x)) - y) ** 2))
    return np.array(scores)


@pytest.mark.parametrize("task_chunk", [None, 3])
def test_mean_and_interval_at_every_step(task_chunk):
    adapt, state = setting()
    found = metajax.evaluate(adapt, metajax.mse(mlp), state, EPISODES, KEY, task_chunk=task_chunk)
    scores = np.stack([by_hand(steps) for steps in range(STEPS + 1)])
    np.testing.assert_allclose(found["mean"], scores.mean(1), rtol=1e-4)
    np.testing.assert_allclose(found["ci95"], 1.96 * scores.std(1) / TASKS**0.5, rtol=1e-4)
    assert found["num_tasks"] == TASKS


@pytest.mark.parametrize("task_chunk", [None, 2])
def test_tasks_that_diverge_show_in_the_quantiles(task_chunk):
    """Errors `(1 - c)^2t` after t steps on `c (p - 1)^2 / 2` from 0; the largest ends in NaN."""
    curvatures = jnp.asarray([0.5, 1.0, 3.0, 0.25, 1e30])
    adapt = metajax.inner_loop(
        lambda p, c, rng: (0.5 * jnp.sum(c * (p - 1) ** 2), {}), optax.sgd(1.0), num_steps=3
    )
    episodes = metajax.Episode(curvatures[:, None], curvatures[:, None])
    state = metajax.MetaParams(jnp.zeros(()))
    found = metajax.evaluate(
        adapt, lambda p, *_: (p - 1) ** 2, state, episodes, KEY, task_chunk=task_chunk
    )
    assert np.isnan(found["mean"][-1])
    errors = np.array([0.0, 0.5**6, 0.75**6, 4.0**3, np.inf])  # after three steps, sorted
    for place, q in enumerate((0.05, 0.25, 0.5, 0.75, 0.95)):
        np.testing.assert_allclose(found["quantiles"][q][0], 1)
        np.testing.assert_allclose(found["quantiles"][q][-1], errors[place], rtol=1e-5)
    np.testing.assert_allclose(found["increased"], [0, 0.4, 0.4, 0.4], rtol=1e-6)


def test_metrics_may_be_any_tree():
    adapt, state = setting(1)

    def metric(params, episode, rng):
        return {"one": 1, "mse": metajax.mse(mlp)(params, episode, rng)}

    found = metajax.evaluate(adapt, metric, state, EPISODES, KEY)
    assert found["mean"]["one"].tolist() == [1, 1]
    assert found["ci95"]["one"].tolist() == [0, 0]
    assert found["mean"]["mse"].shape == (2,)


def test_some_metrics_at_some_steps():
    adapt, state = setting()
    mse, calls = metajax.mse(mlp), []

    def counted(params, episode, rng):
        jax.debug.callback(lambda: calls.append(1))
        return {"mse": mse(params, episode, rng)}

    metrics = {"all": mse, "some": metajax.AtSteps(counted, (3, 0))}
    found = metajax.evaluate(adapt, metrics, state, EPISODES, KEY)
    jax.effects_barrier()
    assert len(calls) in (2, 2 * TASKS)  # once or for every task, but at two of the four steps
    assert found["mean"]["all"].shape == (STEPS + 1,)
    for scores in (found["mean"], found["ci95"], found["quantiles"][0.25]):
        np.testing.assert_allclose(scores["some"]["mse"], scores["all"][np.array([3, 0])])


@pytest.mark.parametrize("step", [-1, STEPS + 1])
def test_a_step_that_is_not_there(step):
    adapt, state = setting()
    metric = metajax.AtSteps(metajax.mse(mlp), (0, step))
    with pytest.raises(ValueError, match="within 0 to 3"):
        metajax.evaluate(adapt, metric, state, EPISODES, KEY)


def centred(params, x):
    """A model with batch statistics: the logits of x minus its batch's mean."""
    return (x - x.mean(0, keepdims=True)) * params


def test_accuracy_sees_all_queries_or_one_beside_the_support():
    support = jnp.asarray([[0.0, 4.0], [0.0, -4.0]]), jnp.asarray([1, 0])
    query = jnp.asarray([[0.0, 5.0], [0.0, 3.0], [1.0, 0.0]]), jnp.asarray([1, 0, 1])
    episode = metajax.Episode(support, query)
    # Transductive: the query mean (1/3, 8/3) makes the logits (-1/3, 7/3), (-1/3, 1/3) and
    # (2/3, -8/3): predictions 1, 1, 0.
    assert float(metajax.accuracy(centred)(jnp.ones(()), episode, KEY)) == pytest.approx(1 / 3)
    # Alone, the means are (0, 5/3), (0, 1) and (1/3, 0): predictions 1, 1, 0 of other logits.
    alone = metajax.accuracy(centred, transductive=False)
    assert float(alone(jnp.ones(()), episode, KEY)) == pytest.approx(1 / 3)


def test_transduction_matters():
    support = jnp.asarray([[0.0, 10.0], [0.0, 10.0]]), jnp.asarray([1, 0])
    query = jnp.asarray([[0.0, 1.0], [0.0, 3.0]]), jnp.asarray([0, 0])
    episode = metajax.Episode(support, query)
    # The query mean is (0, 2); beside the support each query lies below the mean.
    assert float(metajax.accuracy(centred)(jnp.ones(()), episode, KEY)) == 0.5
    alone = metajax.accuracy(centred, transductive=False)
    assert float(alone(jnp.ones(()), episode, KEY)) == 1.0


def test_the_state_must_be_a_state_and_the_adaptation_an_adapt():
    adapt, state = setting()
    with pytest.raises(ValueError, match=r"of type MetaState, from learner\.init"):
        metajax.evaluate(adapt, metajax.mse(mlp), state.meta_params.params, EPISODES, KEY)
    with pytest.raises(ValueError, match="must be of type Adapt, from inner_loop"):
        metajax.evaluate(lambda *_: None, metajax.mse(mlp), state, EPISODES, KEY)


def test_the_metric_must_be_a_function_of_numbers():
    adapt, state = setting()
    with pytest.raises(ValueError, match=r"metric must be a function \(params, episode, rng\)"):
        metajax.evaluate(adapt, 3, state, EPISODES, KEY)
    with pytest.raises(ValueError, match=r"evaluate: metric\['name'\] is str"):
        metajax.evaluate(adapt, lambda *_: {"name": "mse"}, state, EPISODES, KEY)


def test_shapes_that_would_be_broadcast():
    def predict(params, x):
        return x @ params

    x, params = jnp.ones((4, 2)), jnp.ones(2)
    with pytest.raises(ValueError, match=r"shape \(4,\), y has shape \(4, 1\)"):
        metajax.mse(predict)(params, metajax.Episode((), (x, jnp.ones((4, 1)))), KEY)
    assert metajax.mse(predict)(params, metajax.Episode((), (x, jnp.ones(4))), KEY) == 1

    one_hot = metajax.Episode((x, ()), (x, jax.nn.one_hot(jnp.arange(4), 2)))
    with pytest.raises(ValueError, match=r"logits of shape \(4, 2\) .* \(4, 2\) .*jnp.argmax"):
        metajax.accuracy(lambda params, x: x)(params, one_hot, KEY)
    labels = metajax.Episode((x, ()), (x, jnp.arange(4)))
    with pytest.raises(ValueError, match=r"logits of shape \(4,\) and labels of shape \(4,\)"):
        metajax.accuracy(predict)(params, labels, KEY)


def test_meta_parameters_are_enough_to_evaluate():
    adapt, state = setting()
    of_state, of_meta_params = (
        metajax.evaluate(adapt, metajax.mse(mlp), what, EPISODES, KEY)
        for what in (state, state.meta_params)
    )
    np.testing.assert_array_equal(of_state["mean"], of_meta_params["mean"])


def test_one_task_says_nothing_of_the_spread():
    adapt, state = setting()
    one = jax.tree.map(lambda x: x[:1], EPISODES)
    assert jnp.isinf(metajax.evaluate(adapt, metajax.mse(mlp), state, one, KEY)["ci95"]).all()


def test_a_query_alone_is_seen_with_the_support():
    def centered(params, x):
        return x - x.mean(axis=0, keepdims=True)

    episode = metajax.Episode(
        (jnp.asarray([[2.0, 0.0], [2.0, 0.0]]), jnp.asarray([0, 0])),
        (jnp.asarray([[1.0, 0.0]]), jnp.asarray([1])),
    )
    # With the support the mean is (5/3, 0) and the second logit the higher; alone both are 0.
    metric = metajax.accuracy(centered, transductive=False)
    assert float(metric((), episode, jax.random.key(0))) == 1.0
    assert float(metajax.accuracy(centered)((), episode, jax.random.key(0))) == 0.0


def test_a_metric_of_the_adaptation():
    adapt, state = setting()
    metric = {
        "online": metajax.OfAdaptation(lambda info: {"loss": info.loss, "first": info.loss[0]}),
        "mse": metajax.mse(mlp),
    }
    found = metajax.evaluate(adapt, metric, state, EPISODES, KEY)
    losses = [
        adapt.apply(state.meta_params, jax.tree.map(lambda x, i=i: x[i], EPISODES.support), KEY)[
            1
        ].loss
        for i in range(TASKS)
    ]
    online = found["mean"]["online"]
    np.testing.assert_allclose(online["loss"], np.mean(losses, axis=0), rtol=1e-5)
    np.testing.assert_allclose(online["first"], online["loss"][0], rtol=1e-6)
    half_width = 1.96 * np.std(losses, axis=0) / np.sqrt(TASKS)
    np.testing.assert_allclose(found["ci95"]["online"]["loss"], half_width, rtol=1e-4)
    assert found["mean"]["mse"].shape == (STEPS + 1,)


@pytest.mark.parametrize("outside", [0.0, np.nan])
def test_non_transductive_accuracy_ignores_the_padding_of_the_support(outside):
    def centered(params, x):
        return (x - x.mean(axis=0, keepdims=True)) @ params

    support = {
        "x": jnp.concatenate([jnp.eye(3), jnp.full((1, 3), outside)]),
        "y": jnp.asarray([0, 1, 2, 0]),
        "mask": jnp.asarray([True, True, True, False]),
    }
    episode = metajax.Episode(support, (jnp.eye(3), jnp.arange(3)))
    assert metajax.accuracy(centered, transductive=False)(jnp.eye(3), episode, KEY) == 1


def test_non_transductive_accuracy_refuses_a_support_of_other_examples():
    steps = jnp.zeros((3, 2, 4)), jnp.zeros((3, 2), int)
    episode = metajax.Episode(steps, (jnp.eye(4), jnp.arange(4)))
    metric = metajax.accuracy(lambda params, x: x, transductive=False)
    with pytest.raises(ValueError, match=r"support have the shape \[2, 4\], those of the query"):
        metric((), episode, KEY)
