r"""Surrogate losses: their gradient at the sampling policy is the policy gradient.

A surrogate is a function `(policy, params, trajectories) -> loss`, to be minimized. At the sampling
policy all three have the same gradient. They differ in their second derivatives, and therefore in
the meta-gradient: that of `dice` is unbiased but has the largest variance, and the bias of
`likelihood_ratio` is smaller than that of `log_likelihood`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from metajax.base import Array, Params
from metajax.rl.arguments import check_trajectories
from metajax.rl.base import Policy, Trajectories, masked_mean

Surrogate = Callable[[Policy, Params, Trajectories], Array]


def log_likelihood(policy: Policy, params: Params, trajectories: Trajectories) -> Array:
    r"""The loss of REINFORCE, the inner loss of the MAML paper.

    .. math:: -\mathbb{E}[\log \pi_\theta(a_t|s_t) A_t]

    Args:
      policy: `(params, observations) -> Distribution`.
      params: the policy's parameters.
      trajectories: trajectories with advantages.

    Returns:
      The loss, a scalar: the mean over all steps.

    Raises:
      ValueError: for trajectories without advantages.

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      section 4.2; Williams, `Simple Statistical Gradient-Following Algorithms
      <https://doi.org/10.1007/BF00992696>`_, 1992.
    """
    log_probs = _log_probs(policy, params, trajectories)
    return -masked_mean(log_probs * trajectories.advantages, trajectories.mask)


def likelihood_ratio(policy: Policy, params: Params, trajectories: Trajectories) -> Array:
    r"""The likelihood-ratio loss: low variance in its second derivatives.

    .. math:: -\mathbb{E}\Big[\frac{\pi_\theta(a_t|s_t)}{\pi_{old}(a_t|s_t)} A_t\Big]

    It is also the outer loss. The ratio corrects for the changed probabilities of the actions, but
    not for those of the states.

    Arguments and errors are those of `log_likelihood`.

    Example, at the sampling policy, where the ratio is 1 and the advantages have mean 0:

    >>> import jax, jax.numpy as jnp
    >>> from metajax import rl
    >>> from metajax.rl.navigation import navigation
    >>> env = navigation()._replace(horizon=5)
    >>> model = rl.GaussianMLP(env.action_size, hidden=())
    >>> params = model.init(jax.random.key(0), jnp.zeros(2))
    >>> sample = rl.sampler(env, model.apply, 3)
    >>> trajectories = sample(params, {"goal": jnp.ones(2)}, jax.random.key(1))
    >>> abs(float(rl.likelihood_ratio(model.apply, params, trajectories))) < 1e-6
    True

    References:
      Rothfuss et al., `ProMP: Proximal Meta-Policy Search <https://arxiv.org/abs/1810.06784>`_,
      2019, equation 9; Schulman et al., `Trust Region Policy Optimization
      <https://arxiv.org/abs/1502.05477>`_, 2015, equation 14.
    """
    log_probs = _log_probs(policy, params, trajectories)
    sampled = trajectories.distribution.log_prob(trajectories.actions)
    ratios = jnp.exp(log_probs - _unmasked(sampled, trajectories))
    return -masked_mean(ratios * trajectories.advantages, trajectories.mask)


def dice(policy: Policy, params: Params, trajectories: Trajectories) -> Array:
    r"""The DiCE loss with advantages, an estimator for derivatives of any order.

    .. math::
      -\mathbb{E}\big[\textstyle\sum_t (m(\sum_{k \le t} \log\pi_k) - m(\sum_{k < t} \log\pi_k))
      A_t\big], \quad m(x) = \exp(x - \mathrm{stop}(x))

    Derivatives of every order are unbiased if the advantages are. The variance grows with the
    horizon.

    Arguments and errors are those of `log_likelihood`.

    References:
      Foerster et al., `DiCE <https://arxiv.org/abs/1802.05098>`_, 2018, equation 6; Farquhar et
      al., `Loaded DiCE <https://arxiv.org/abs/1909.10549>`_, 2019, equation 7.
    """
    log_probs = _log_probs(policy, params, trajectories)
    until = jnp.cumsum(log_probs, axis=-1)
    boxes = jnp.exp(until - jax.lax.stop_gradient(until))
    before = until - log_probs
    earlier = jnp.exp(before - jax.lax.stop_gradient(before))
    return -masked_mean((boxes - earlier) * trajectories.advantages, trajectories.mask)


SURROGATES: dict[str, Surrogate] = {
    "log_likelihood": log_likelihood,
    "likelihood_ratio": likelihood_ratio,
    "dice": dice,
}


def _log_probs(policy: Policy, params: Params, trajectories: Trajectories) -> Array:
    check_trajectories("surrogate", trajectories, "advantages")
    log_probs = policy(params, trajectories.observations).log_prob(trajectories.actions)
    return _unmasked(log_probs, trajectories)


def _unmasked(x: Array, trajectories: Trajectories) -> Array:
    return jnp.where(trajectories.mask > 0, x, 0.0)
