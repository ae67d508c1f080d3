"""The layers against Flax, PyTorch and `lax.reduce_window`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from jax import lax

from metajax import nn

KEY = jax.random.key(0)


def test_the_convolution_layer_is_that_of_flax():
    options = {"features": 4, "kernel_size": (3, 3), "strides": (2, 2), "padding": "VALID"}
    x = jax.random.normal(jax.random.key(0), (2, 7, 8, 3))
    layer = nn.Conv(**options)
    params = layer.init(jax.random.key(1), x)
    np.testing.assert_array_equal(params["params"]["bias"], np.zeros(4))
    params["params"]["bias"] += jnp.arange(4.0)
    expected = linen.Conv(**options).apply(params, x)
    np.testing.assert_allclose(layer.apply(params, x), expected, rtol=1e-5, atol=1e-5)
    unbiased = nn.Conv(**options, use_bias=False).init(jax.random.key(1), x)
    assert unbiased["params"].keys() == {"kernel"}


@pytest.mark.parametrize("shape", [(16, 5), (4, 3, 3, 5)])
@pytest.mark.parametrize(("scale", "bias"), [(True, True), (False, True), (False, False)])
def test_batch_norm_and_its_gradient_are_those_of_torch_in_training(shape, scale, bias):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, cotangent = rng.normal(2, 3, shape), rng.normal(size=shape)
    x, cotangent = x.astype(np.float32), cotangent.astype(np.float32)
    sizes = {"scale": scale, "bias": bias}
    params = {k: rng.normal(size=5).astype(np.float32) for k, used in sizes.items() if used}
    layer = nn.BatchNorm(use_scale=scale, use_bias=bias)

    def apply(params, x):
        return layer.apply({"params": params}, x)

    assert (
        jax.eval_shape(layer.init, jax.random.key(0), x).get("params", {}).keys() == params.keys()
    )
    found, pullback = jax.vjp(apply, params, x)
    found_params, found_x = pullback(jnp.asarray(cotangent))

    images = torch.tensor(np.moveaxis(x, -1, 1), requires_grad=True)
    tensors = {k: torch.tensor(v, requires_grad=True) for k, v in params.items()}
    expected = torch.nn.functional.batch_norm(
        images, None, None, tensors.get("scale"), tensors.get("bias"), training=True, eps=1e-3
    )
    expected.backward(torch.tensor(np.moveaxis(cotangent, -1, 1)))

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

    close(found, np.moveaxis(expected.detach().numpy(), 1, -1))
    close(found_x, np.moveaxis(images.grad.numpy(), 1, -1))
    for name, tensor in tensors.items():
        close(found_params[name], tensor.grad.numpy())


def test_batch_norm_keeps_its_statistics_in_float32():
    x = (jnp.arange(64.0).reshape(32, 2) / 64 + 100).astype(jnp.bfloat16)
    layer = nn.BatchNorm()
    params = layer.init(jax.random.key(0), x)
    found = layer.apply(params, x)
    assert found.dtype == jnp.bfloat16
    exact = layer.apply(params, x.astype(jnp.float32))
    np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("shape", [(64, 3), (4, 4, 4, 3)])
def test_batch_norm_survives_a_mean_far_from_zero(shape):
    x = np.random.default_rng(0).normal(1e4, 1.0, shape).astype(np.float32)
    layer = nn.BatchNorm()
    exact, axes = x.astype(np.float64), tuple(range(len(shape) - 1))
    exact = (exact - exact.mean(axes)) / np.sqrt(exact.var(axes) + 1e-3)
    found = layer.apply(layer.init(jax.random.key(0), x), x)
    # The resolution of float32 at 1e4 is 1e-3.
    np.testing.assert_allclose(found, exact, atol=5e-3)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("shape", [(6, 2), (3, 2, 2, 2)])
def test_batch_norm_has_second_derivatives(shape):
    rng, axes = np.random.default_rng(0), tuple(range(len(shape) - 1))
    x, v = jnp.asarray(rng.normal(2, 3, shape)), jnp.asarray(rng.normal(size=shape))
    layer = nn.BatchNorm(use_bias=False)

    def ours(x):
        return layer.apply({}, x)

    def textbook(x):
        mean, variance = (f(x, axes, keepdims=True) for f in (jnp.mean, jnp.var))
        return (x - mean) / jnp.sqrt(variance + 1e-3)

    def product(normalize):
        return jax.jvp(jax.grad(lambda x: jnp.sum(jnp.sin(normalize(x)))), (x,), (v,))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9),
        product(ours),
        product(textbook),
    )


def windows(x, padding):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), padding)


@pytest.mark.parametrize("size", [(6, 8), (7, 9), (5, 4)])
@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_max_pool_and_its_gradient_are_those_of_reduce_window(size, padding):
    x = jax.random.normal(jax.random.key(0), (2, *size, 3))
    found, pullback = jax.vjp(lambda x: nn.max_pool(x, padding=padding), x)
    expected, reference_pullback = jax.vjp(lambda x: windows(x, padding), x)
    np.testing.assert_array_equal(found, expected)
    cotangent = jax.random.normal(jax.random.key(1), found.shape)
    np.testing.assert_array_equal(pullback(cotangent)[0], reference_pullback(cotangent)[0])


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_max_pool_has_second_derivatives(padding):
    x = jax.random.normal(jax.random.key(0), (2, 5, 7, 3))

    def cubes(x):
        return jnp.sum(nn.max_pool(x, padding=padding) ** 3)

    # Only the largest pixels matter: the Hessian is 6 x there and 0 elsewhere.
    largest = jax.grad(lambda x: nn.max_pool(x, padding=padding).sum())(x)
    tangent = jnp.cos(x)
    expected = 6 * x * largest * tangent
    forward = jax.jvp(jax.grad(cubes), (x,), (tangent,))[1]
    reverse = jax.grad(lambda x: jnp.vdot(jax.grad(cubes)(x), tangent))(x)
    np.testing.assert_allclose(forward, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(reverse, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_of_equal_pixels_the_first_has_the_gradient(padding):
    x = jax.random.randint(jax.random.key(0), (2, 9, 9, 3), 0, 3).astype(jnp.float32)
    found, pullback = jax.vjp(lambda x: nn.max_pool(x, padding=padding), x)
    expected, reference_pullback = jax.vjp(lambda x: windows(x, padding), x)
    np.testing.assert_array_equal(found, expected)
    cotangent = jax.random.normal(jax.random.key(1), found.shape)
    np.testing.assert_array_equal(pullback(cotangent)[0], reference_pullback(cotangent)[0])


def test_the_backward_pass_of_max_pool_does_not_scatter():
    x = jnp.zeros((3, 2, 7, 7, 3))

    def lowered(pool):
        gradient = jax.vmap(jax.grad(lambda x: jnp.sum(pool(x) ** 3)))
        return jax.jit(gradient).lower(x).as_text()

    assert "scatter" not in lowered(lambda x: nn.max_pool(x, padding="SAME"))
    assert "scatter" in lowered(lambda x: windows(x, "SAME"))


@pytest.mark.parametrize(
    ("shape", "padding", "message"),
    [
        ((4, 4, 1), "VALID", r"expected images .* got shape \(4, 4, 1\)"),
        ((1, 4, 4, 1), "HALF", "padding must be .* got 'HALF'"),
        ((1, 1, 4, 1), "VALID", "images of 1 x 4 are smaller than the 2 x 2 window"),
    ],
)
def test_max_pool_errors(shape, padding, message):
    with pytest.raises(ValueError, match=message):
        nn.max_pool(jnp.zeros(shape), padding=padding)


@pytest.mark.parametrize("layer", [nn.max_pool, lambda x: nn.BatchNorm().init(KEY, x)])
def test_images_of_integers_are_refused_where_they_would_be_rounded(layer):
    with pytest.raises(ValueError, match=r"expected floating-point .* got uint8; convert"):
        layer(jnp.zeros((1, 4, 4, 1), jnp.uint8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 0}, "Conv: features must be a positive integer, got 0"),
        ({"features": 4, "kernel_size": 3}, "Conv: kernel_size must be two positive .* got 3"),
        ({"features": 4, "strides": 2}, r"strides must be two .* such as \(2, 2\), got 2"),
    ],
)
def test_convolution_errors(options, message):
    with pytest.raises(ValueError, match=message):
        nn.Conv(**options).init(KEY, jnp.zeros((1, 4, 4, 1)))


@pytest.mark.parametrize(
    ("num_steps", "x", "step", "message"),
    [
        (2, (3, 4), None, r"num_steps=2 needs the inner step of each call: norm\(x, step\)"),
        (0, (3, 4), 1.0, "a call with a step needs num_steps"),
        (-1, (3, 4), None, "num_steps must be a non-negative integer, got -1"),
        (0, (4,), None, r"expected \[examples, ..., channels\], got shape \(4,\)"),
    ],
)
def test_batch_norm_errors(num_steps, x, step, message):
    step = None if step is None else jnp.asarray(step)
    with pytest.raises(ValueError, match=message):
        nn.BatchNorm(num_steps=num_steps).init(KEY, jnp.zeros(x), step)
