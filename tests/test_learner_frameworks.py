"""One loss in five libraries: all train unchanged, and all have the same meta-gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from tests.helpers import mlp_params, regression

SIZES = (2, 5, 1)
WEIGHTS = mlp_params(0, SIZES, jnp.float32)


def squared_error(apply):
    def loss(params, batch, rng):
        x, y = batch
        return jnp.mean((apply(params, x) - y) ** 2), {}

    return loss


def plain():
    def apply(params, x):
        x = jnp.tanh(x @ params[0]["w"] + params[0]["b"][None])
        return x @ params[1]["w"] + params[1]["b"][None]

    return apply, WEIGHTS, lambda p: [p[0]["w"], p[0]["b"], p[1]["w"], p[1]["b"]]


def linen():
    from flax import linen

    model = linen.Sequential([linen.Dense(5), jnp.tanh, linen.Dense(1)])
    params = {
        "params": {
            f"layers_{2 * i}": {"kernel": layer["w"], "bias": layer["b"]}
            for i, layer in enumerate(WEIGHTS)
        }
    }
    jax.tree.map(jnp.add, params, model.init(jax.random.key(0), jnp.zeros((1, 2))))

    def leaves(p):
        layers = [p["params"][name] for name in ("layers_0", "layers_2")]
        return [x for layer in layers for x in (layer["kernel"], layer["bias"])]

    return model.apply, params, leaves


def nnx():
    from flax import nnx

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.first, self.second = nnx.Linear(2, 5, rngs=rngs), nnx.Linear(5, 1, rngs=rngs)

        def __call__(self, x):
            return self.second(jnp.tanh(self.first(x)))

    model = Model(nnx.Rngs(0))
    for layer, weights in zip((model.first, model.second), WEIGHTS, strict=True):
        layer.kernel[...], layer.bias[...] = weights["w"], weights["b"]
    graph, params = nnx.split(model)

    def leaves(p):
        return [p[n][k][...] for n in ("first", "second") for k in ("kernel", "bias")]

    return lambda params, x: nnx.merge(graph, params)(x), params, leaves


def equinox():
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(2, 1, 5, 1, activation=jnp.tanh, key=jax.random.key(0))
    for i, layer in enumerate(WEIGHTS):
        model = eqx.tree_at(
            lambda m, i=i: (m.layers[i].weight, m.layers[i].bias), model, (layer["w"].T, layer["b"])
        )
    params, static = eqx.partition(model, eqx.is_array)

    def leaves(p):
        return [x for layer in p.layers for x in (layer.weight.T, layer.bias)]

    return lambda params, x: jax.vmap(eqx.combine(params, static))(x), params, leaves


def haiku():
    hk = pytest.importorskip("haiku")
    model = hk.without_apply_rng(
        hk.transform(lambda x: hk.Sequential([hk.Linear(5), jnp.tanh, hk.Linear(1)])(x))
    )
    names = ("linear", "linear_1")
    params = {name: dict(layer) for name, layer in zip(names, WEIGHTS, strict=True)}
    jax.tree.map(jnp.add, params, model.init(jax.random.key(0), jnp.zeros((1, 2))))
    return model.apply, params, lambda p: [p[n][k] for n in names for k in ("w", "b")]


FRAMEWORKS = [plain, linen, nnx, equinox, haiku]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("algorithm", [metajax.maml, metajax.reptile])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_loss_of_any_library_trains_unchanged(framework, algorithm):
    updated = []
    # Haiku and nnx broadcast a bias over the batch.
    with jax.numpy_rank_promotion("allow"):
        for make in (framework, plain):
            apply, params, leaves = make()
            learner = algorithm(squared_error(apply), optax.sgd(0.1), optax.sgd(0.5), num_steps=2)
            state, update = learner.init(params), jax.jit(learner.update)
            for seed in range(3):
                episodes = regression(seed, tasks=4, dtype=jnp.float32)
                state, metrics = update(state, episodes, jax.random.key(seed))
            updated.append([np.asarray(x) for x in leaves(state.meta_params.params)])
            assert np.isfinite(metrics["query_loss"])
    before = [np.asarray(x) for layer in WEIGHTS for x in (layer["w"], layer["b"])]
    for found, expected, start in zip(*updated, before, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-5)
        assert np.abs(found - start).max() > 1e-4
