"""Poles on carts with unknown motors: the physics by hand, and what the tasks are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import rl
from metajax.rl.cart_pole import cart_pole


def after(task, action):
    """What is observed before and after one push."""
    env = cart_pole()
    first = env.reset(jax.random.key(0), task)
    return np.asarray(first.observation), np.asarray(env.step(first, action).observation)


def task(force, length):
    return {
        "force_mag": jnp.asarray(force),
        "length": jnp.asarray(length),
        "polemass_length": jnp.asarray(0.1 * length),
    }


@pytest.mark.parametrize(("force", "length"), [(10.0, 0.5), (5.0, 1.0), (15.0, 0.25)])
def test_a_push_by_the_equations(force, length):
    (x, speed, angle, turning), found = after(task(force, length), 1)
    mass, whole, gravity, tau = 0.1, 1.1, 9.8, 0.02
    push = (force + mass * length * turning**2 * np.sin(angle)) / whole
    bend = (gravity * np.sin(angle) - np.cos(angle) * push) / (
        length * (4 / 3 - mass * np.cos(angle) ** 2 / whole)
    )
    pull = push - mass * length * bend * np.cos(angle) / whole
    expected = [x + tau * speed, speed + tau * pull, angle + tau * turning, turning + tau * bend]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_a_motor_wired_the_other_way_round_swaps_the_actions():
    for action in (0, 1):
        np.testing.assert_allclose(
            after(task(-8.0, 0.5), action)[1], after(task(8.0, 0.5), 1 - action)[1], rtol=1e-6
        )


def test_the_tasks():
    tasks = cart_pole().sample_tasks(jax.random.key(0), 2000)
    force, length = np.abs(tasks["force_mag"]), tasks["length"]
    assert (force.min() > 5, force.max() < 15) == (True, True)
    assert (length.min() > 0.25, length.max() < 1) == (True, True)
    assert np.mean(tasks["force_mag"] > 0) == pytest.approx(0.5, abs=0.03)
    np.testing.assert_allclose(tasks["polemass_length"], 0.1 * length, rtol=1e-5)


def test_the_return_is_the_number_of_steps_until_the_pole_falls():
    env = cart_pole(horizon=30)

    def always_right(params, observations):
        return rl.Categorical(
            jnp.broadcast_to(jnp.array([-50.0, 50.0]), (*observations.shape[:-1], 2))
        )

    trajectories = rl.rollout(env, always_right, (), task(10.0, 0.5), jax.random.key(0), 5)
    assert ((trajectories.mask.sum(1) > 7) & (trajectories.mask.sum(1) < 12)).all()
    assert float(rl.mean_return(trajectories)) == float(trajectories.mask.sum(1).mean())


def test_a_categorical_perceptron_is_its_matrices():
    policy = rl.CategoricalMLP(3, hidden=(5,), activation=jnp.tanh)
    x = jax.random.normal(jax.random.key(0), (2, 7, 4))
    params = policy.init(jax.random.key(1), x[0, 0])
    first, second = (params["params"][f"Dense_{i}"] for i in (0, 1))
    hidden = np.tanh(np.asarray(x) @ np.asarray(first["kernel"]))  # the biases start at zero
    expected = hidden @ np.asarray(second["kernel"])
    np.testing.assert_allclose(policy.apply(params, x).logits, expected, rtol=1e-4, atol=1e-6)
