"""Convolution, layers and models against `lax.conv`, PyTorch and counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import metajax
from metajax import nn

SHAPES = [
    # image, kernel, stride, padding
    ((7, 7), (3, 3), (1, 1), "SAME"),
    ((8, 8), (3, 3), (2, 2), "SAME"),
    ((7, 9), (3, 3), (2, 2), "SAME"),
    ((7, 8), (3, 2), (3, 1), "VALID"),
    ((8, 7), (5, 5), (2, 3), "SAME"),
    ((6, 6), (1, 1), (2, 2), "SAME"),
    ((6, 6), (1, 1), (3, 3), "VALID"),
    ((5, 5), (3, 3), (2, 2), ((2, 1), (0, 3))),
]


def reference(x, kernel, strides, padding):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def operands(image, window, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, *image, 3)), rng.normal(size=(*window, 3, 4))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("image", "window", "strides", "padding"), SHAPES)
def test_convolution_and_its_derivatives_are_those_of_lax(image, window, strides, padding):
    x, kernel = operands(image, window)
    dx, dk = operands(image, window, seed=1)

    def all_of(conv):
        def value(x, kernel):
            return jnp.sum(jnp.sin(conv(x, kernel)))

        gradient = jax.grad(value, (0, 1))
        _, second = jax.jvp(gradient, (x, kernel), (dx, dk))  # forward over reverse
        reverse = jax.grad(
            lambda *a: sum(jnp.vdot(g, d) for g, d in zip(gradient(*a), (dx, dk), strict=True)),
            (0, 1),
        )(x, kernel)
        return conv(x, kernel), gradient(x, kernel), second, reverse

    ours = all_of(lambda x, k: nn.conv(x, k, strides=strides, padding=padding))
    theirs = all_of(lambda x, k: reference(x, k, strides, padding))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), ours, theirs)


def test_convolution_under_vmap_over_kernels():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 2, 8, 8, 3)).astype(np.float32)
    kernels = rng.normal(size=(3, 3, 3, 3, 4)).astype(np.float32)
    ours = jax.vmap(lambda x, k: nn.conv(x, k, strides=(2, 2)))(x, kernels)
    theirs = [reference(a, k, (2, 2), "SAME") for a, k in zip(x, kernels, strict=True)]
    np.testing.assert_allclose(ours, np.stack(theirs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("image", "kernel", "padding", "message"),
    [
        ((2, 8, 8, 3), (3, 3, 1, 4), "SAME", "images have 3 channels, the kernel takes 1"),
        ((8, 8, 3), (3, 3, 3, 4), "SAME", r"got shapes \(8, 8, 3\)"),
        ((2, 2, 2, 3), (3, 3, 3, 4), "VALID", "a kernel of 3 x 3 does not fit images of 2 x 2"),
        ((2, 8, 8, 3), (3, 3, 3, 4), "HALF", "padding must be"),
    ],
)
def test_convolution_errors(image, kernel, padding, message):
    with pytest.raises(ValueError, match=message):
        nn.conv(jnp.zeros(image), jnp.zeros(kernel), padding=padding)


def lowered_meta_gradient(conv, monkeypatch):
    """The StableHLO of MAML on the Omniglot network, tasks under `vmap`."""
    monkeypatch.setattr("metajax.nn.layers.conv", conv)
    model = nn.ConvNet(5, features=8)

    def loss(params, batch, rng):
        x, y = batch
        logits = model.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), {}

    learner = metajax.maml(loss, optax.sgd(0.1), optax.sgd(0.1), num_steps=2)
    batch = jnp.zeros((3, 5, 28, 28, 1)), jnp.zeros((3, 5), jnp.int32)
    state = learner.init(model.init(jax.random.key(0), batch[0][0]))
    episodes = metajax.Episode(batch, batch)
    return jax.jit(learner.update).lower(state, episodes, jax.random.key(0)).as_text()


def grouped(module):
    counts = ("feature_group_count = 1 ", "batch_group_count = 1 ")
    lines = [line for line in module.splitlines() if "stablehlo.convolution" in line]
    return [line for line in lines if not all(count in line for count in counts)]


def test_the_meta_gradient_has_no_grouped_convolution(monkeypatch):
    module = lowered_meta_gradient(nn.conv, monkeypatch)
    assert "stablehlo.dot_general" in module
    assert not grouped(module)


def test_the_check_for_grouped_convolutions_can_fail(monkeypatch):
    def native(x, kernel, *, strides, padding):
        return reference(x, kernel, strides, padding)

    assert grouped(lowered_meta_gradient(native, monkeypatch))


@pytest.mark.parametrize("shape", [(16, 5), (4, 3, 3, 5)])
def test_batch_norm_is_that_of_torch_in_training(shape):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, gamma, beta = rng.normal(2, 3, shape), rng.normal(size=5), rng.normal(size=5)
    x, gamma, beta = (a.astype(np.float32) for a in (x, gamma, beta))
    layer = nn.BatchNorm(use_scale=True)
    found = layer.apply({"params": {"scale": gamma, "bias": beta}}, x)
    channels_first = torch.tensor(np.moveaxis(x, -1, 1))
    expected = torch.nn.functional.batch_norm(
        channels_first, None, None, torch.tensor(gamma), torch.tensor(beta), True, eps=1e-3
    )
    np.testing.assert_allclose(found, np.moveaxis(expected.numpy(), 1, -1), rtol=1e-4, atol=1e-5)


def test_batch_norm_keeps_its_statistics_in_float32():
    x = (jnp.arange(64.0).reshape(32, 2) / 64 + 100).astype(jnp.bfloat16)
    layer = nn.BatchNorm()
    y = layer.apply(layer.init(jax.random.key(0), x), x)
    exact = layer.apply(layer.init(jax.random.key(0), x), x.astype(jnp.float32))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=1e-2, atol=1e-2)


def count(model, x):
    params = model.init(jax.random.key(0), jnp.zeros(x))
    return sum(p.size for p in jax.tree.leaves(params)), params["params"]


OMNIGLOT = (3, 28, 28, 1)


@pytest.mark.parametrize(
    ("model", "x", "outputs", "parameters"),
    [
        (nn.sinusoid_mlp(), (3, 1), 1, 40 + 40 + 40 * 40 + 40 + 40 + 1),
        (nn.sinusoid_mlp_nichol(), (3, 1), 1, 64 + 64 + 64 * 64 + 64 + 64 + 1),
        # 3 x 3 kernels and a beta per channel, then the head.
        (nn.omniglot_conv(5), OMNIGLOT, 5, 576 + 3 * 36864 + 4 * 64 + 64 * 5 + 5),
        (nn.omniglot_conv_nichol(5), OMNIGLOT, 5, 576 + 3 * 36864 + 4 * 128 + 256 * 5 + 5),
        (
            nn.omniglot_mlp(20),
            OMNIGLOT,
            20,
            784 * 256 + 256 * 128 + 128 * 64 + 64 * 64 + (256 + 128 + 64 + 64) + 64 * 20 + 20,
        ),
    ],
)
def test_models_have_the_papers_sizes_and_a_head(model, x, outputs, parameters):
    found, params = count(model, x)
    assert found == parameters
    assert params["head"]["bias"].shape == (outputs,)
    y = model.apply({"params": params}, jnp.ones(x))
    assert y.shape == (3, outputs)


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match='reduce must be "mean" or "flatten", got \'max\''):
        nn.ConvNet(5, reduce="max").init(jax.random.key(0), jnp.zeros(OMNIGLOT))
