"""Numbers that are not finite: the meta-step, the remedy and the last checkpoint."""

import jax
import jax.numpy as jnp
import optax
import pytest

import metajax
from metajax import train
from metajax.tasks import Sinusoid
from tests.train.runs import SETTINGS, fit, initial, learner, own


def test_a_last_update_that_is_not_finite_is_no_result(tmp_path):
    settings = {**SETTINGS, "num_meta_steps": 1, "steps_per_call": 1}
    with pytest.raises(train.NonFiniteError, match="meta-step 1: the update is not finite"):
        train.fit(learner(optax.sgd(jnp.inf)), initial(), Sinusoid(), workdir=tmp_path, **settings)
    with pytest.raises(FileNotFoundError):
        train.load(tmp_path, learner(optax.sgd(jnp.inf)), initial())


def test_the_checkpoint_after_a_diverging_update_is_the_one_before_it(tmp_path):
    # At the last update of the second call, which would save; what is reported is finite.
    broken = own(lambda step: {"objective": 1.0, "meta_gradient_norm": 1.0}, bad_step=40)
    with pytest.raises(train.NonFiniteError, match=r"^meta-step 40: the update is not finite, "):
        fit(broken, workdir=tmp_path)
    saved = train.load(tmp_path, broken, initial())
    assert int(saved.state.step) == 20
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(saved.state.meta_params))


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (lambda step: {}, r"^meta-steps 11 to 20: an update is not finite\. Lower the inner or"),
        (lambda step: {"objective": step}, r"^meta-steps 11 to 20: an update is not finite"),
        (
            lambda step: {"objective": jnp.where(step < 15, 1.0, jnp.nan)},
            r"^meta-step 16: objective nan\. Lower the inner or outer",
        ),
        (
            lambda step: {"meta_gradient_norm": jnp.where(step < 13, 1.0, jnp.inf)},
            r"^meta-step 14: norm of the meta-gradient inf\. Lower the inner or outer",
        ),
        (
            lambda step: {"objective": jnp.array([1.0, 1.0 / (step != 13)])},
            r"^meta-step 14: objective 1\.0 inf\. Lower the inner",
        ),
        (
            lambda step: {"objective": 1.0, "meta_gradient_norm": 1.0 / (step != 12)},
            r"^meta-step 13: objective 1\.0, norm of the meta-gradient inf\. The loss is finite",
        ),
    ],
)
def test_the_error_names_what_the_metrics_show(metrics, message):
    with pytest.raises(train.NonFiniteError, match=message):
        fit(own(metrics, bad_step=20))


def test_keys_and_integers_need_not_be_finite():
    beside = (jax.random.key(0), jnp.arange(3))
    assert int(fit(own(inner_state=beside), num_meta_steps=10).state.step) == 10
    with pytest.raises(train.NonFiniteError, match=r"^meta-steps 1 to 10"):
        fit(own(inner_state=(*beside, jnp.array([0.0, jnp.inf]))))


def dead_unit(params, x, rng):
    return jnp.mean((jax.nn.relu(x @ params["w"]) @ params["v"]) ** 2), {}


def root_at_zero(params, x, rng):
    return jnp.sqrt(jnp.sum(0.0 * params["w"] ** 2)), {}


@pytest.mark.parametrize(
    ("loss", "optimizer", "num_steps", "remedy", "absent"),
    [
        (dead_unit, optax.adam(0.1), 2, "pass eps_root, as in optax.adam", "Lower"),
        (dead_unit, optax.lamb(0.1), 2, r"choose first_order\(\)", "eps_root"),
        (root_at_zero, optax.sgd(0.1), 0, "its derivative is not", "eps_root"),
    ],
    ids=["adam", "lamb", "root"],
)
def test_the_remedy_for_a_derivative_fits(loss, optimizer, num_steps, remedy, absent):
    params = {"w": jnp.asarray([[1.0, -100.0]]), "v": jnp.ones((2, 1))}
    maml = metajax.maml(loss, optimizer, optax.sgd(0.1), num_steps=num_steps)

    def tasks(rng):
        x = jax.random.uniform(rng, (4, 1))
        return metajax.Episode(x, x)

    with pytest.raises(train.NonFiniteError, match=remedy) as error:
        fit(maml, params=params, tasks=tasks)
    assert absent not in str(error.value)
