"""Poles on carts whose physics differ: the smallest family in which adaptation pays."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from metajax.base import Array, Key
from metajax.rl.base import Env
from metajax.rl.gymnax_env import from_gymnax

try:
    import gymnax
except ImportError as error:
    raise ImportError(f'cart_pole needs gymnax ({error}): pip install "metajax[rl]"') from error

FORCES = (5.0, 15.0)
LENGTHS = (0.25, 1.0)


def cart_pole(*, horizon: int = 100) -> Env:
    """Gymnax' CartPole with another motor and pole in each task, neither of which is observed.

    The force of a push is drawn uniformly from 5 to 15 N, and half of the motors are wired the
    other way round, so that the two actions change places. Half the length of the pole is drawn
    from 0.25 to 1 m. The reward is 1 for each step until the pole falls or the cart leaves the
    track.

    A task is `{"force_mag": [], "length": [], "polemass_length": []}`, where the last is the
    product that gymnax keeps beside the length.

    Args:
      horizon: the most steps per trajectory, and so the highest return.

    Raises:
      ValueError: if `horizon` is not a positive integer.

    Example:

    >>> import jax
    >>> from metajax.rl.cart_pole import cart_pole
    >>> env = cart_pole()
    >>> env.observation_size, env.action_size, env.discrete
    (4, 2, True)
    >>> tasks = env.sample_tasks(jax.random.key(0), 1000)
    >>> 400 < int((tasks["force_mag"] < 0).sum()) < 600
    True

    References:
      Barto et al., Neuronlike adaptive elements that can solve difficult learning control problems,
      1983, for the equations; the family is this library's.
    """
    environment, defaults = gymnax.make("CartPole-v1")

    def sample_tasks(rng: Key, n: int) -> dict[str, Array]:
        force_rng, sign_rng, length_rng = jax.random.split(rng, 3)
        low, high = FORCES
        force = jax.random.uniform(force_rng, (n,), minval=low, maxval=high)
        short, long = LENGTHS
        length = jax.random.uniform(length_rng, (n,), minval=short, maxval=long)
        return {
            "force_mag": force * jax.random.rademacher(sign_rng, (n,), jnp.float32),
            "length": length,
            "polemass_length": defaults.masspole * length,
        }

    return from_gymnax(environment, sample_tasks, horizon=horizon)
