"""Weights in a file: what is kept, and what a damaged or foreign file is answered with."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

import metajax
from metajax import train
from metajax.train.weights import load_state

PARAMS = {"w": jnp.arange(3.0), "b": [jnp.ones((2, 2), jnp.bfloat16)]}


def loss(params, x, rng):
    return jnp.mean((params["w"] - x) ** 2) + jnp.sum(params["b"][0].astype(x.dtype)) ** 2, {}


def learner(**options):
    return metajax.meta_sgd(loss, optax.adam(1e-3), learning_rate=0.1, **options)


def trained(options):
    each = learner(**options)
    state = each.init(PARAMS)
    batch = jnp.ones((2, 3))
    return each, each.update(state, metajax.Episode(batch, batch), jax.random.key(0))[0]


def test_what_is_written_is_read_to_the_bit(tmp_path):
    each, state = trained({})
    digest = train.save_weights(tmp_path, state)
    path = tmp_path / "weights.safetensors"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    found = train.load_weights(path, each.inner, jax.tree.map(jnp.zeros_like, PARAMS))
    assert jax.tree.structure(found) == jax.tree.structure(state.meta_params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state.meta_params), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    # Others read it by the names of the arrays.
    assert {"meta_params/params/w", "meta_params/inner/w"} <= set(load_file(path))


def test_the_inner_state_comes_back_where_the_learner_is_there(tmp_path):
    adapt = {"num_steps": 2, "carry": "mean"}
    each = metajax.reptile(loss, optax.adam(0.1), optax.sgd(1.0), **adapt)
    state = each.init(PARAMS)
    batch = jnp.ones((2, 3))
    state, _ = each.update(state, metajax.Episode(batch, batch), jax.random.key(0))
    train.save_weights(tmp_path, state)
    found = load_state(tmp_path, each.init(PARAMS))
    jax.tree.map(np.testing.assert_array_equal, found.inner_state, state.inner_state)
    assert jax.tree.leaves(state.inner_state)
    # To adapt, the parameters are enough.
    train.load_weights(tmp_path, metajax.inner_loop(loss, optax.sgd(0.1), 1), PARAMS)


def test_a_record_is_compared_with_its_digest(tmp_path):
    each, state = trained({})
    digest = train.save_weights(tmp_path, state)
    (tmp_path / "result.json").write_text(json.dumps({"weights": {"sha256": digest}}))
    train.load_weights(tmp_path, each.inner, PARAMS)
    changed = state._replace(meta_params=jax.tree.map(lambda x: x + 1, state.meta_params))
    train.save_weights(tmp_path, changed)
    with pytest.raises(train.WeightsError, match=r"has the SHA-256 \w+, .*result.json says"):
        train.load_weights(tmp_path, each.inner, PARAMS)


def test_a_file_that_is_not_there_damaged_or_of_another_model(tmp_path):
    each, state = trained({})
    with pytest.raises(FileNotFoundError, match="there are no weights in"):
        train.load_weights(tmp_path, each.inner, PARAMS)
    train.save_weights(tmp_path, state)
    plain = metajax.inner_loop(loss, optax.sgd(0.1), 1)
    with pytest.raises(train.WeightsError, match=r"inner/w is float32\[3\] there, absent here"):
        train.load_weights(tmp_path, plain, PARAMS)
    other = {**PARAMS, "w": jnp.zeros(4)}
    with pytest.raises(train.WeightsError, match=r"params/w is float32\[3\] there, float32\[4\]"):
        train.load_weights(tmp_path, each.inner, other)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(train.WeightsError, match="is damaged"):
        train.load_weights(tmp_path, each.inner, PARAMS)


def test_the_parameters_alone(tmp_path):
    _, state = trained({})
    train.save_weights(tmp_path, state)
    found = train.load_params(tmp_path, jax.tree.map(jnp.zeros_like, PARAMS))
    jax.tree.map(np.testing.assert_array_equal, found, state.meta_params.params)
    with pytest.raises(train.WeightsError, match=r"params/w is float32\[3\] there, float32\[4\]"):
        train.load_params(tmp_path, {**PARAMS, "w": jnp.zeros(4)})


def test_parameters_from_elsewhere(tmp_path):
    path = tmp_path / "pretrained.safetensors"
    named = {"w": np.arange(3.0, dtype=np.float32), "b/0": np.ones((2, 2), np.float32)}
    save_file(named, path)
    like = {"w": jnp.zeros(3), "b": [jnp.zeros((2, 2))]}
    found = train.load_params(path, like)
    np.testing.assert_array_equal(found["w"], named["w"])
    np.testing.assert_array_equal(found["b"][0], named["b/0"])
    with pytest.raises(train.WeightsError, match=r"b/0 is float32\[2, 2\] there, absent here"):
        train.load_params(path, {"w": jnp.zeros(3)})
    with pytest.raises(FileNotFoundError, match="there are no weights in"):
        train.load_params(tmp_path / "nothing.safetensors", like)
    stateful = metajax.Stateful({"w": jnp.zeros(2)}, jnp.zeros(2))
    save_file({"params/w": np.ones(2, np.float32), "state": np.ones(2, np.float32)}, path)
    both = train.load_params(path, stateful)
    assert both.params["w"].tolist() == both.state.tolist() == [1.0, 1.0]


def test_a_model_with_a_state_of_its_own(tmp_path):
    def averaged(model, x, rng):
        return jnp.mean((model.params - x) ** 2), {}, 0.9 * model.state + 0.1 * x.mean()

    each = metajax.maml(averaged, optax.sgd(0.1), optax.sgd(0.1), num_steps=2, carry="mean")
    start = metajax.Stateful(jnp.zeros(()), jnp.zeros(()))
    batch = jnp.ones((2, 3))
    state, _ = each.update(each.init(start), metajax.Episode(batch, batch), jax.random.key(0))
    train.save_weights(tmp_path, state)
    # Another optimizer adapts from them: what the first one carried is not needed.
    adapt = metajax.inner_loop(averaged, optax.adam(0.1), 1)
    found = train.load_weights(tmp_path, adapt, start)
    np.testing.assert_array_equal(found.params.params, state.meta_params.params)
    np.testing.assert_array_equal(found.params.state, state.inner_state.model)
    assert float(found.params.state) != 0
    alone = train.load_params(tmp_path, start)
    assert (alone.params, alone.state) == (found.params.params, found.params.state)


def test_keys_are_refused(tmp_path):
    state = metajax.MetaParams({"key": jax.random.key(0)})
    with pytest.raises(train.WeightsError, match="meta_params/params/key is key<fry>"):
        train.save_weights(tmp_path, state)
