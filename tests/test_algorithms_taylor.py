"""Nichol 2018, equations 36-41: what MAML, FOMAML and Reptile are to first order in the step size.

In expectation over minibatches each meta-gradient is `a AvgGrad - b alpha AvgGradInner`.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax

pytestmark = pytest.mark.usefixtures("float64")

SIZE = 3


def loss(params, batch, rng):
    """Not quadratic, and with another gradient and Hessian for every minibatch."""
    matrix, target = batch
    return jnp.sum((jnp.tanh(matrix @ params) - target) ** 2), {}


def expected_meta_gradient(algorithm, k, minibatches, alpha):
    """The mean meta-gradient over all orders of the `k` minibatches."""
    matrices, targets = minibatches
    orders = np.array(list(itertools.permutations(range(k))))
    theta = jnp.asarray([0.3, -0.5, 0.2])
    steps = k if algorithm == "reptile" else k - 1
    adapt = metajax.inner_loop(
        loss,
        optax.sgd(alpha),
        steps,
        meta_gradient=metajax.second_order() if algorithm == "maml" else metajax.first_order(),
        batches=metajax.per_step(),
    )
    objective = metajax.displacement() if algorithm == "reptile" else metajax.query_loss(loss)

    def of_order(order):
        ordered = matrices[order], targets[order]
        support = jax.tree.map(lambda x: x[:steps], ordered)
        query = jax.tree.map(lambda x: x[-1], ordered)

        def value(params):
            episode = metajax.Episode(support, query)
            return objective(adapt, metajax.MetaParams(params), episode, jax.random.key(0))[0]

        gradient = jax.grad(value)(theta)
        # The displacement is alpha times the sum of the gradients.
        return gradient / alpha if algorithm == "reptile" else gradient

    return jnp.mean(jax.vmap(of_order)(orders), axis=0)


COEFFICIENTS = {
    "maml": lambda k: (1, 2 * (k - 1)),
    "fomaml": lambda k: (1, k - 1),
    "reptile": lambda k: (k, k * (k - 1) / 2),
}


@pytest.mark.parametrize("k", [2, 3, *(pytest.param(k, marks=pytest.mark.slow) for k in (4, 5))])
@pytest.mark.parametrize("algorithm", COEFFICIENTS)
def test_coefficients(algorithm, k):
    rng = np.random.default_rng(k)
    minibatches = jnp.asarray(rng.normal(size=(k, 4, SIZE))), jnp.asarray(rng.normal(size=(k, 4)))
    theta = jnp.asarray([0.3, -0.5, 0.2])

    def of_batch(params, matrix, target):
        return loss(params, (matrix, target), None)[0]

    gradients = jax.vmap(jax.grad(of_batch), (None, 0, 0))(theta, *minibatches)
    hessians = jax.vmap(jax.hessian(of_batch), (None, 0, 0))(theta, *minibatches)
    average = gradients.mean(0)
    inner = jnp.mean(
        jnp.stack([hessians[i] @ gradients[j] for i in range(k) for j in range(k) if i != j]), 0
    )

    def meta_gradient(alpha):
        return expected_meta_gradient(algorithm, k, minibatches, alpha)

    # f(0) and f'(0) from f at four small step sizes: a cubic through them.
    h = 1e-4
    nodes = h * np.array([1.0, 2.0, 3.0, 4.0])
    values = np.array(jax.vmap(meta_gradient)(jnp.asarray(nodes)))
    constant, slope = np.linalg.solve(np.vander(nodes, increasing=True), values)[:2]
    a, b = COEFFICIENTS[algorithm](k)
    np.testing.assert_allclose(constant, a * average, rtol=1e-7)
    np.testing.assert_allclose(slope, -b * inner, rtol=1e-4)
