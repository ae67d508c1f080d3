"""Tasks of unequal size in one meta-batch: padded and masked, each is what it is alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from tests.helpers import RECORDER, assert_close, mlp, mlp_params, recorded_gradient

SIZES = (3, 5, 4)
PADDED = 6


def batch(seed, size, padded=None):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(size, 2))
    y = np.sin(x.sum(-1, keepdims=True))
    if padded is None:
        return {"x": jnp.asarray(x, jnp.float32), "y": jnp.asarray(y, jnp.float32)}
    fill = ((0, padded - size), (0, 0))
    return {
        "x": jnp.asarray(np.pad(x, fill, constant_values=7.0), jnp.float32),
        "y": jnp.asarray(np.pad(y, fill, constant_values=-9.0), jnp.float32),
        "mask": jnp.arange(padded) < size,
    }


def episode(task, size, padded=None):
    return metajax.Episode(batch(task, size, padded), batch(10 + task, size + 1, padded))


def stacked(trees):
    return jax.tree.map(lambda *xs: jnp.stack(xs), *trees)


def classes(params, x):
    return jnp.concatenate([mlp(params, x), -mlp(params, x)], axis=1)


def labelled(tree):
    """The same with classes for targets."""
    return {**tree, "y": (tree["y"][:, 0] > 0).astype(jnp.int32)}


@pytest.mark.parametrize(
    "engine", [metajax.second_order(), metajax.mixed_mode(), metajax.first_order()]
)
@pytest.mark.parametrize("form", ["regression", "classification"])
def test_padded_tasks_have_the_gradient_of_the_tasks_alone(form, engine):
    def episodes(padded):
        made = [episode(i, size, padded) for i, size in enumerate(SIZES)]
        if form == "classification":
            made = [metajax.Episode(*map(labelled, each)) for each in made]
        return made

    loss = {
        "regression": metajax.squared_error(mlp),
        "classification": metajax.cross_entropy(classes),
    }[form]
    learner = metajax.maml(loss, optax.sgd(0.1), RECORDER, num_steps=2, meta_gradient=engine)
    params = mlp_params(dtype=jnp.float32)
    together = recorded_gradient(learner, params, stacked(episodes(PADDED)))
    singles = [recorded_gradient(learner, params, stacked([each])) for each in episodes(None)]
    assert_close(together, jax.tree.map(lambda *xs: sum(xs) / len(xs), *singles), rtol=1e-4)


@pytest.mark.parametrize("form", ["tuple", "dict"])
def test_metrics_leave_out_the_padding(form):
    def formed(each):
        return each if form == "dict" else tuple(each.values())

    params = mlp_params(dtype=jnp.float32)
    alone, padded = (metajax.Episode(*map(formed, episode(0, 3, p))) for p in (None, PADDED))
    of = [metajax.mse(mlp)(params, each, jax.random.key(0)) for each in (alone, padded)]
    assert_close(of[0], of[1])
    alone, padded = (
        metajax.Episode(*(formed(labelled(each)) for each in episode(0, 3, p)))
        for p in (None, PADDED)
    )
    for transductive in (True, False):
        metric = metajax.accuracy(classes, transductive=transductive)
        of = [metric(params, each, jax.random.key(0)) for each in (alone, padded)]
        assert_close(of[0], of[1])


def test_losses_are_those_by_hand():
    params, data = mlp_params(dtype=jnp.float32), batch(0, 4)
    value, _ = metajax.squared_error(mlp)(params, data, jax.random.key(0))
    assert_close(value, jnp.mean((mlp(params, data["x"]) - data["y"]) ** 2))
    data = labelled(data)
    value, metrics = metajax.cross_entropy(classes)(params, data, jax.random.key(0))
    logs = jax.nn.log_softmax(classes(params, data["x"]))
    assert_close(value, -jnp.mean(logs[jnp.arange(4), data["y"]]))
    assert_close(metrics["accuracy"], jnp.mean(logs.argmax(1) == data["y"]))


def test_a_batch_of_another_form():
    with pytest.raises(ValueError, match=r"a batch must be .* got a dict of \['image'\]"):
        metajax.squared_error(mlp)(mlp_params(), {"image": 0}, jax.random.key(0))


@pytest.mark.parametrize("nan_in", ["x", "y"])
def test_padding_may_hold_anything(nan_in):
    x, y, mask = jnp.ones((3, 2)), jnp.asarray([1.0, 2.0, 0.0]), jnp.asarray([True, True, False])
    padded = {"x": x, "y": y, "mask": mask}
    padded[nan_in] = padded[nan_in].at[2].set(jnp.nan)
    loss = metajax.squared_error(lambda params, x: x @ params)
    value = lambda batch: jax.value_and_grad(lambda p: loss(p, batch, None)[0])(jnp.ones(2))  # noqa: E731
    assert_close(value(padded), value((x[:2], y[:2])))
    labels = {**padded, "y": jnp.asarray([0, 1, 7])}
    entropy = metajax.cross_entropy(lambda params, x: x @ jnp.stack([params, -params], 1))
    assert_close(
        jax.grad(lambda p: entropy(p, labels, None)[0])(jnp.ones(2)),
        jax.grad(lambda p: entropy(p, (x[:2], jnp.asarray([0, 1])), None)[0])(jnp.ones(2)),
    )


def test_labels_are_integers_and_batches_have_examples():
    entropy = metajax.cross_entropy(lambda params, x: x @ params)
    with pytest.raises(ValueError, match="labels must be integers"):
        entropy(jnp.eye(2), (jnp.eye(2), jnp.asarray([0.5, 1.0])), None)
    with pytest.raises(ValueError, match="the batch has no examples"):
        entropy(jnp.eye(2), (jnp.zeros((0, 2)), jnp.zeros(0, int)), None)
    with pytest.raises(ValueError, match="the batch has no examples"):
        metajax.squared_error(lambda params, x: x @ params)(
            jnp.ones(2), (jnp.zeros((0, 2)), jnp.zeros(0)), None
        )


def test_a_label_that_is_no_class_makes_the_loss_nan():
    loss = metajax.cross_entropy(lambda params, x: x)
    for label in (-1, -3, 3):
        batch = jnp.asarray([[0.0, 1.0, 3.0]]), jnp.asarray([label])
        assert jnp.isnan(loss((), batch, jax.random.key(0))[0])


def test_masked_inputs_may_be_a_tree():
    def apply(params, x):
        assert {name: leaf.shape for name, leaf in x.items()} == {"a": (2, 3), "b": (2,)}
        return x["a"] + x["b"][:, None]

    for outside in (0.0, jnp.nan):
        x = {"a": jnp.asarray([[1.0, 2.0, 3.0], [outside] * 3]), "b": jnp.asarray([1.0, outside])}
        batch = {"x": x, "y": jnp.asarray([2, 0]), "mask": jnp.asarray([True, False])}
        value, _ = metajax.cross_entropy(apply)((), batch, jax.random.key(0))
        assert_close(value, -jax.nn.log_softmax(jnp.asarray([1.0, 2.0, 3.0]))[2], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_labels_of_narrow_types(dtype):
    logits = jnp.arange(300.0)[None]
    loss = metajax.cross_entropy(lambda params, x: x)
    value, _ = loss((), (logits, np.asarray([100], dtype)), jax.random.key(0))
    assert_close(value, -jax.nn.log_softmax(logits)[0, 100], rtol=1e-6)
