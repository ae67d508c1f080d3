"""The checks of numerical values: derivatives of optimizers, symmetry of losses."""

import jax
import jax.numpy as jnp
import optax
import pytest

import metajax
from tests.helpers import DEAD, meta_gradient, mlp_loss, mlp_params, regression, relu_loss
from tests.test_gradients import OPTIMIZERS

KEY = jax.random.key(0)


def test_adam_through_a_dead_unit_is_found_or_finite():
    for params in (DEAD, DEAD["w"]):  # a whole dead array, and a single dead unit
        with pytest.raises(ValueError, match=r"pass eps_root, as in optax.adam\(lr, eps_root=1e-8"):
            metajax.check_differentiable(optax.adam(0.1), params)
    x = jnp.ones((4, 1))
    adapt = metajax.inner_loop(relu_loss, optax.adam(0.1, eps_root=1e-8), 2)
    found = meta_gradient(adapt, metajax.query_loss(relu_loss), DEAD, metajax.Episode(x, x))
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(found))
    assert found.params["w"][0, 1] == 0  # the unit is dead indeed


def test_adam_without_eps_root_would_be_nan():
    """What the check protects from: it must not outlive its reason."""
    adapt = metajax.inner_loop(relu_loss, optax.adam(0.1), 2)
    x = jnp.ones((4, 1))

    def value(params):
        meta_params = metajax.MetaParams(params)
        episode = metajax.Episode(x, x)
        return metajax.query_loss(relu_loss)(adapt, meta_params, episode, jax.random.key(0))[0]

    assert jnp.isnan(jax.grad(value)(DEAD)["w"]).any()


@pytest.mark.parametrize("algorithm", [metajax.fomaml, metajax.reptile, metajax.imaml])
def test_engines_that_do_not_differentiate_the_update_take_any_adam(algorithm):
    learner = algorithm(relu_loss, optax.adam(0.1), optax.sgd(0.1), num_steps=2)
    state, x = learner.init(DEAD), jnp.ones((1, 4, 1))
    state, metrics = learner.update(state, metajax.Episode(x, x), jax.random.key(0))
    assert jnp.isfinite(metrics["meta_gradient_norm"])


# A chain that clips alone is fine: only where all gradients are zero has it no derivative.
SOUND = {
    **OPTIMIZERS,
    "adamw": optax.adamw(0.1, eps_root=1e-8),
    "schedule": optax.sgd(optax.linear_schedule(0.0, 0.1, 3)),
    "multi_steps": optax.MultiSteps(optax.sgd(0.1), 2),
    "finite": optax.apply_if_finite(optax.sgd(0.1), 3),
    "clipped_head": metajax.adapt_only(OPTIMIZERS["clipped"], lambda path: path[0].key == "v"),
}
UNSOUND = {
    "radam": optax.radam(0.1, eps_root=1e-8),
    "lars": optax.lars(0.1),
    "lamb": optax.lamb(0.1, eps_root=1e-8),
    "novograd": optax.novograd(0.1),
    "adaptive_clip": optax.chain(optax.adaptive_grad_clip(0.5), optax.sgd(0.1)),
}
# Of these none has an `eps_root` that helps.
HOPELESS = {
    **UNSOUND,
    "adafactor": optax.adafactor(0.1),
    "muon": optax.contrib.muon(0.1),
    "prodigy": optax.contrib.prodigy(0.1),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_optimizers_have_a_derivative_at_dead_units(name):
    metajax.check_differentiable(SOUND[name], DEAD)
    learner = metajax.maml(relu_loss, SOUND[name], optax.sgd(0.1), num_steps=8)
    state, x = jax.jit(learner.init)(DEAD), jnp.ones((1, 4, 1))
    _, metrics = learner.update(state, metajax.Episode(x, x), jax.random.key(0))
    assert jnp.isfinite(metrics["meta_gradient_norm"])


@pytest.mark.parametrize("name", HOPELESS)
def test_the_remedy_is_one_that_the_optimizer_has(name):
    with pytest.raises(ValueError, match="is not finite") as error:
        metajax.check_differentiable(HOPELESS[name], DEAD)
    assert "eps_root" not in str(error.value)
    assert "first_order()" in str(error.value)


@pytest.mark.parametrize("name", ["radam", "lars"])
def test_the_unsound_would_be_nan(name):
    """`radam` changes its rule after five steps; `lars` divides by the norm of a zero bias."""
    adapt = metajax.inner_loop(relu_loss, UNSOUND[name], 8)
    params = {**DEAD, "v": jnp.zeros((2, 1))} if name == "lars" else DEAD
    x = jnp.ones((4, 1))

    @jax.grad
    def gradient(params):
        objective, episode = metajax.query_loss(relu_loss), metajax.Episode(x, x)
        return objective(adapt, metajax.MetaParams(params), episode, jax.random.key(0))[0]

    assert any(jnp.isnan(g).any() for g in jax.tree.leaves(gradient(params)))


def test_an_asymmetric_loss_is_found():
    @jax.custom_vjp
    def reverse(x):
        return x

    reverse.defvjp(lambda x: (x, None), lambda _, g: (-g,))

    def adversarial(p, x, rng):
        return jnp.mean(jnp.tanh(reverse(x @ p["body"]) @ p["head"]) ** 2), {}

    params = {"body": jnp.asarray([[0.5, -1.0]]), "head": jnp.asarray([[1.0], [2.0]])}
    x = jnp.linspace(-1, 1, 5).reshape(5, 1)
    with pytest.raises(ValueError, match="not symmetric"):
        metajax.check_symmetric(adversarial, params, x, KEY)
    assert metajax.check_symmetric(mlp_loss, mlp_params(), regression().support, KEY) < 1e-3
    stateful = metajax.Stateful(params, jnp.ones(()))
    with pytest.raises(ValueError, match="not symmetric"):
        metajax.check_symmetric(
            lambda s, x, rng: (*adversarial(s.params, x, rng), s.state), stateful, x, KEY
        )
