"""The inner loop handed out by a learner, with other step counts and samplers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import rl
from tests.rl.environments import chase

ENV = chase()
MODEL = rl.GaussianMLP(2, hidden=(4,))
START = MODEL.init(jax.random.key(0), jnp.zeros(2))
LEARNERS = {
    "maml_trpo": rl.maml_trpo,
    "promp": lambda loop: rl.promp(loop, optax.adam(1e-3)),
    "reptile": lambda loop: rl.reptile(loop, optax.sgd(0.1)),
}


def doubled_dice(*args):
    """A surrogate that no default is."""
    return 2 * rl.dice(*args)


def build(num_steps, trajectories, **kwargs):
    sample = rl.sampler(ENV, MODEL.apply, trajectories, gae_lambda=0.7)
    rate = optax.piecewise_constant_schedule(0.3, {1: 0.5})
    return rl.inner_loop(
        MODEL.apply, sample, optax.sgd(rate), num_steps, surrogate=doubled_dice, **kwargs
    )


@jax.jit
def tasks():
    return metajax.tasks.meta_batch(rl.Tasks(ENV.sample_tasks), 3, jax.random.key(1))


def returns(loop):
    metric = rl.policy_return(ENV, MODEL.apply, 4)

    def score(params, episodes, rng):
        return metajax.evaluate(loop.collect, metric, metajax.MetaParams(params), episodes, rng)

    return jax.jit(score)(START, tasks(), jax.random.key(2))


@pytest.mark.parametrize("name", LEARNERS)
def test_a_learner_hands_out_its_inner_loop(name):
    loop = build(1, 3)
    assert LEARNERS[name](loop).inner is loop


def test_the_numbers_are_those_of_an_inner_loop_built_by_hand():
    learner = rl.maml_trpo(build(1, 3))
    sample = rl.sampler(ENV, MODEL.apply, 5, gae_lambda=0.7)
    found = returns(learner.inner.rebuild(num_steps=2, sample=sample))
    assert found["mean"].shape == (3,)
    jax.tree.map(np.testing.assert_array_equal, found, returns(build(2, 5)))


@pytest.mark.parametrize(
    ("changes", "num_steps", "trajectories"),
    [
        ({}, 2, 3),
        ({"num_steps": 3}, 3, 3),
        ({"num_steps": 0}, 0, 3),
        ({"sample": rl.sampler(ENV, MODEL.apply, 5)}, 2, 5),
    ],
    ids=["nothing", "steps", "no steps", "sampler"],
)
def test_what_is_not_given_stays(changes, num_steps, trajectories):
    loop = build(2, 3, meta_gradient=metajax.mixed_mode()).rebuild(**changes)
    start, task = metajax.MetaParams(START), {"goal": jnp.ones(2)}
    collected = jax.eval_shape(lambda: rl.collect(loop, start, task, jax.random.key(0)))
    assert collected.query.mask.shape == (trajectories, ENV.horizon)
    if num_steps:
        assert collected.support.mask.shape == (num_steps, trajectories, ENV.horizon)
    assert jax.tree.leaves(collected.policies)[0].shape[0] == num_steps + 1
    # The meta-gradient is the one given, not the default.
    assert not loop.replay.forward


def test_a_rebuilt_loop_can_be_rebuilt():
    loop = build(1, 3).rebuild(num_steps=2).rebuild(sample=build(1, 5).sample)
    jax.tree.map(np.testing.assert_array_equal, returns(loop), returns(build(2, 5)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": -1}, "num_steps is static and must be a non-negative integer, got -1"),
        ({"sample": ENV}, r"sample must be a function \(params, task, rng\) from rl.sampler"),
    ],
)
def test_wrong_changes_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        build(1, 3).rebuild(**changes)
