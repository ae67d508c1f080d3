r"""Surrogates: scalars whose gradient at the sampling policy is the policy gradient.

All three have the same value's gradient where the trajectories were sampled. They differ in the
second derivative, hence in the meta-gradient: only `dice` has the right one in expectation, at the
price of its variance; the bias of `likelihood_ratio` is smaller than that of `log_likelihood`.

Each is `(policy, params, trajectories) -> loss`, to be minimized.
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
    r"""REINFORCE, :math:`-\mathbb{E}[\log \pi_\theta(a_t|s_t) A_t]`: the original inner loss.

    References:
      Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017,
      section 4.2; Williams, 1992.
    """
    log_probs = _log_probs(policy, params, trajectories)
    return -masked_mean(log_probs * trajectories.advantages, trajectories.mask)


def likelihood_ratio(policy: Policy, params: Params, trajectories: Trajectories) -> Array:
    r""":math:`-\mathbb{E}[\frac{\pi_\theta(a_t|s_t)}{\pi_{old}(a_t|s_t)} A_t]`: low-variance
    curvature.

    It is also the outer loss: away from the sampling policy it accounts for the change of the
    actions' probabilities, though not for that of the states'.

    References:
      Rothfuss et al., `ProMP: Proximal Meta-Policy Search <https://arxiv.org/abs/1810.06784>`_,
      2019, equation 9; Schulman et al., 2015.
    """
    log_probs = _log_probs(policy, params, trajectories)
    sampled = trajectories.distribution.log_prob(trajectories.actions)
    ratios = jnp.exp(log_probs - _where_counted(sampled, trajectories))
    return -masked_mean(ratios * trajectories.advantages, trajectories.mask)


def dice(policy: Policy, params: Params, trajectories: Trajectories) -> Array:
    r"""The infinitely differentiable estimator, with advantages.

    .. math::
      -\mathbb{E}\big[\textstyle\sum_t (m(\sum_{k \le t} \log\pi_k) - m(\sum_{k < t} \log\pi_k))
      A_t\big], \quad m(x) = \exp(x - \mathrm{stop}(x))

    Derivatives of every order are unbiased where those of the advantages are; the variance grows
    with the horizon.

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
    check_trajectories("the surrogate", trajectories, "advantages")
    log_probs = policy(params, trajectories.observations).log_prob(trajectories.actions)
    return _where_counted(log_probs, trajectories)


def _where_counted(x: Array, trajectories: Trajectories) -> Array:
    return jnp.where(trajectories.mask > 0, x, 0.0)
