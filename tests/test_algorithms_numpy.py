"""MAML unrolled by hand in NumPy, over several inner steps, tasks and meta-updates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from tests.helpers import assert_close

pytestmark = pytest.mark.usefixtures("float64")

RATE, STEPS, TASKS, SHOTS, SIZE = 0.5, 3, 4, 6, 3


def loss(params, batch, rng):
    """Logistic regression, labels in {0, 1}."""
    x, y = batch
    logits = x @ params
    return jnp.mean(jax.nn.softplus(logits) - y * logits), {}


def gradient(w, x, y):
    return x.T @ (1 / (1 + np.exp(-x @ w)) - y) / len(y)


def hessian(w, x, y):
    p = 1 / (1 + np.exp(-x @ w))
    return (x * (p * (1 - p))[:, None]).T @ x / len(y)


def meta_gradient(theta, support, query):
    phi, jacobian = theta, np.eye(SIZE)
    for _ in range(STEPS):
        jacobian = (np.eye(SIZE) - RATE * hessian(phi, *support)) @ jacobian
        phi = phi - RATE * gradient(phi, *support)
    return jacobian.T @ gradient(phi, *query)


def numpy_adam(theta, grads):
    m = v = 0.0
    for t, g in enumerate(grads, start=1):
        m, v = 0.9 * m + 0.1 * g(theta), 0.999 * v + 0.001 * g(theta) ** 2
        theta = theta - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return theta


def numpy_sgd(theta, grads):
    for g in grads:
        theta = theta - 0.1 * g(theta)
    return theta


@pytest.mark.parametrize(
    ("outer", "by_hand"), [(optax.sgd(0.1), numpy_sgd), (optax.adam(0.1), numpy_adam)]
)
def test_meta_updates_follow_the_hand_unrolled_ones(outer, by_hand):
    rng = np.random.default_rng(0)

    def batches():
        x = rng.normal(size=(5, TASKS, SHOTS, SIZE))
        return x, (x.sum(-1) + rng.normal(size=(5, TASKS, SHOTS)) > 0).astype(float)

    support, query = batches(), batches()
    theta = rng.normal(size=SIZE)
    learner = metajax.maml(loss, optax.sgd(RATE), outer, num_steps=STEPS)
    state, update = learner.init(jnp.asarray(theta)), jax.jit(learner.update)

    def mean_gradient(step):
        def at(theta):
            tasks = [
                meta_gradient(theta, [a[step, i] for a in support], [a[step, i] for a in query])
                for i in range(TASKS)
            ]
            return np.mean(tasks, axis=0)

        return at

    for step in range(5):
        episodes = jax.tree.map(
            lambda a, s=step: jnp.asarray(a[s]), metajax.Episode(support, query)
        )
        state, _ = update(state, episodes, jax.random.key(0))
    expected = by_hand(theta, [mean_gradient(step) for step in range(5)])
    assert_close(state.meta_params.params, expected, rtol=1e-10)
