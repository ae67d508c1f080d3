"""The recipes run in the order of their page, and are what they say they are."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from tests.helpers import assert_close

# A rate without a state: those of optax are not serialized.
STATELESS = optax.GradientTransformation(
    lambda params: (), lambda grads, state, params=None: (jax.tree.map(lambda g: -g, grads), state)
)
PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"


@pytest.fixture(scope="module")
def names():
    found = {}
    with jax.numpy_rank_promotion("allow"):
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
            exec(compile(block, str(PAGE), "exec"), found)
    return found


def descent(loss, params, batch, rate):
    return jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(loss)(params, batch))


def squared(network):
    return lambda params, batch: jnp.mean((network(params, batch[0]) - batch[1]) ** 2)


def meta_gradient(total, params, episodes):
    def mean(params):
        return jnp.mean(jax.vmap(lambda s, q: total(params, s, q))(*episodes))

    return jax.jit(jax.grad(mean))(params)


def stepped(params, gradient, rate):
    return jax.tree.map(lambda p, g: p - rate * g, params, gradient)


def test_learning_online(names):
    x, y = names["streams"].support

    def total(params, x, y):
        w, losses = params["w"], []
        for step in range(8):
            value, gradient = jax.value_and_grad(
                lambda w, s=step: jnp.mean((x[s] @ w - y[s]) ** 2)
            )(w)
            losses.append(value)
            w = w - 0.05 * gradient
        return jnp.stack(losses)

    start = {"w": jnp.zeros((8, 1))}
    gradient = jax.grad(lambda p: jnp.mean(jax.vmap(lambda a, b: total(p, a, b))(x, y)))(start)
    found = names["reader_state"].meta_params.params
    assert_close(found, stepped(start, gradient, 0.1), rtol=1e-4)
    expected = jax.vmap(lambda a, b: total(found, a, b))(x, y).mean(axis=0)
    assert_close(names["losses"]["mean"], expected, rtol=1e-4)
    windows = names["sequences"].support[0]
    assert windows.shape == (8, 16, 8)
    assert_close(windows[:, 1:, :-1], windows[:, :-1, 1:])


def test_more_steps_at_test_time(names):
    assert names["scores"]["mean"].shape == (11,)
    assert names["scores"]["mean"][10] < names["scores"]["mean"][1]


def test_a_sweep_and_a_hypergradient(names):
    alone = [jax.jit(names["after"])(rate) for rate in (0.01, 0.03, 0.1)]
    assert_close(names["swept"], jnp.stack(alone), rtol=1e-4)
    numeric = (names["after"](0.031) - names["after"](0.029)) / 0.002
    assert_close(names["hypergradient"], numeric, rtol=2e-2)


def test_context_parameters(names):
    loss, wide = squared(names["with_context"]), names["wide"]

    def total(params, support, query):
        context = params["context"]
        for _ in range(2):
            gradient = jax.grad(lambda c: loss({**params, "context": c}, support))(context)
            context = context - gradient
        return loss({**params, "context": context}, query)

    gradient = meta_gradient(total, wide, names["episodes"])
    # The first step of Adam is its rate times the sign.
    moved = jax.tree.map(jnp.subtract, wide, names["cavia_state"].meta_params.params)
    for found, g in zip(jax.tree.leaves(moved), jax.tree.leaves(gradient), strict=True):
        sure = np.abs(g) > 1e-4
        assert_close(found[sure], 1e-3 * np.sign(g[sure]), rtol=1e-2)


def test_rates_for_parts(names):
    loss, params = squared(names["network"]), names["params"]
    gradient = meta_gradient(
        lambda p, s, q: loss(descent(loss, p, s, 0.05), q), params, names["episodes"]
    )
    found = names["labelled_state"].meta_params.params
    assert_close(found["body"], params["body"] - 0.01 * gradient["body"], rtol=1e-4)
    assert_close(found["head"], params["head"] - 0.1 * gradient["head"], rtol=1e-4)


def test_truncated_back_propagation(names):
    loss, params = squared(names["network"]), names["params"]

    def total(params, support, query):
        moved = params
        for _ in range(3):
            moved = descent(loss, moved, support, 0.05)
        start = jax.tree.map(lambda p, m: p + jax.lax.stop_gradient(m - p), params, moved)
        for _ in range(2):
            start = descent(loss, start, support, 0.05)
        return loss(start, query)

    gradient = meta_gradient(total, params, names["episodes"])
    found = names["shortened_state"].meta_params.params
    assert_close(found, stepped(params, gradient, 0.1), rtol=1e-4)


def test_a_head_from_prototypes(names):
    def loss(params, batch):
        logs = jax.nn.log_softmax(names["classify"](params, batch[0]))
        return -jnp.mean(jnp.take_along_axis(logs, batch[1][:, None], 1))

    def total(body, support, query):
        adapted = names["prototypes"](metajax.MetaParams(body), support, None)
        for _ in range(3):
            adapted = descent(loss, adapted, support, 0.1)
        return loss(adapted, query)

    body = names["params"]["body"]
    gradient = meta_gradient(total, body, names["few_shot"])
    assert_close(names["proto_state"].meta_params.params, body - 0.1 * gradient, rtol=1e-4)


def test_a_rebuilt_loop_keeps_its_start(names):
    rebuilt = names["proto_maml"].inner.rebuild(num_steps=0)
    support, key = jax.tree.map(lambda x: x[0], names["few_shot"].support), jax.random.key(0)
    body = names["params"]["body"]
    adapted, info = rebuilt.apply(metajax.MetaParams(body), support, key)
    assert_close(adapted, names["prototypes"](metajax.MetaParams(body), support, None))
    assert len(info.loss) == rebuilt.num_steps == 0


def test_tasks_of_unequal_size_and_state_train(names):
    for state in (names["unequal_state"], names["with_state"]):
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.meta_params))
    moved = jax.tree.leaves(names["with_state"].inner_state.model)
    assert any(np.any(x != 0) for x in moved)
    assert names["prediction"].shape == (1, 1)


def test_an_exported_adaptation_runs_where_there_is_only_jax(names, tmp_path):
    (tmp_path / "adaptation").write_bytes(names["serialized"])
    leaves = [np.asarray(x) for x in jax.tree.leaves(names["arguments"])]
    np.savez(tmp_path / "arguments.npz", *leaves)
    code = f"""
import sys
sys.modules["metajax"] = sys.modules["optax"] = sys.modules["flax"] = None
import jax, numpy as np
from jax import export
held = np.load({str(tmp_path / "arguments.npz")!r})
body, head, x, y, query, key = (held[f"arr_{{i}}"] for i in range(6))
call = export.deserialize(open({str(tmp_path / "adaptation")!r}, "rb").read()).call
np.save({str(tmp_path / "found.npy")!r}, call(dict(body=body, head=head), (x, y), query, key))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert_close(np.load(tmp_path / "found.npy"), names["again"], rtol=1e-5)
    direct = names["predict"](*names["arguments"])
    assert_close(direct, names["again"], rtol=1e-5)


def test_states_and_episodes_are_exported():
    from jax import export

    learner = metajax.maml(lambda p, b, r: (jnp.mean((p - b) ** 2), {}), optax.sgd(0.1), STATELESS)
    state = learner.init(jnp.zeros(()))
    episode = metajax.Episode(jnp.ones((2, 3)), jnp.ones((2, 3)))

    @jax.jit
    def update(state, episode):
        state, _ = learner.update(state, episode, jax.random.key(0))
        return state.meta_params, state.inner_state, state.step

    held = export.export(update)(state, episode)
    meta_params, _, step = export.deserialize(held.serialize()).call(state, episode)
    assert isinstance(meta_params, metajax.MetaParams)
    assert int(step) == 1
