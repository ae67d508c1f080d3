"""The models of the papers: sizes counted by hand, and the same weights in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import nn

OMNIGLOT, MINI_IMAGENET = (3, 28, 28, 1), (3, 84, 84, 3)


def kernels(channels, features):
    """Weights of four 3 x 3 convolutions."""
    return 9 * channels * features + 3 * 9 * features**2


@pytest.mark.parametrize(
    ("model", "x", "head", "size"),
    [
        (nn.sinusoid_mlp(), (3, 1), (40, 1), 1761),
        (nn.sinusoid_mlp_nichol(), (3, 1), (64, 1), 4353),
        # Kernels, beta (and gamma) of four layers, head.
        (nn.omniglot_conv(5), OMNIGLOT, (64, 5), kernels(1, 64) + 4 * 64 + 325),
        (nn.omniglot_conv_nichol(5), OMNIGLOT, (256, 5), kernels(1, 64) + 8 * 64 + 1285),
        (nn.mini_imagenet_conv(5), MINI_IMAGENET, (800, 5), kernels(3, 32) + 4 * 32 + 4005),
        (
            nn.mini_imagenet_conv_nichol(5),
            MINI_IMAGENET,
            (1152, 5),
            kernels(3, 32) + 8 * 32 + 5765,
        ),
        # One gamma and beta for each of five steps and for what they end with.
        (
            nn.conv_per_step(5),
            OMNIGLOT,
            (64, 5),
            kernels(1, 64) + 4 * 2 * 6 * 64 + 1 + 325,
        ),
        (
            nn.resnet12(5),
            MINI_IMAGENET,
            (512, 5),
            sum(
                9 * a * b + 2 * 9 * b * b + a * b + 4 * 2 * b
                for a, b in ((3, 64), (64, 128), (128, 256), (256, 512))
            )
            + 512 * 5
            + 5,
        ),
        (
            nn.omniglot_mlp(20),
            OMNIGLOT,
            (64, 20),
            784 * 256 + 256 * 128 + 128 * 64 + 64 * 64 + (256 + 128 + 64 + 64) + 1300,
        ),
    ],
)
def test_models_have_the_sizes_of_the_papers_and_a_head(model, x, head, size):
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(x))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == size
    assert params["head"]["kernel"].shape == head
    y = jax.eval_shape(model.apply, {"params": params}, jnp.zeros(x))
    assert y.shape == (x[0], head[-1])


def test_the_step_picks_the_normalization():
    model = nn.ConvNet(2, features=3, depth=1, pool="max", use_scale=True, norm_steps=2)
    x = jax.random.uniform(jax.random.key(0), (4, 6, 6, 1))
    params = model.init(jax.random.key(1), x)["params"]
    norm = params["BatchNorm_0"]
    norm["scale"], norm["bias"] = jnp.asarray([[1.0] * 3, [2.0] * 3]), norm["bias"].at[1].set(0.5)
    plain = nn.ConvNet(2, features=3, depth=1, pool="max", use_scale=True)
    for step, row in ((0, 0), (1, 1), (2, 1)):
        found = model.apply({"params": {**params, "step": jnp.asarray(float(step))}}, x)
        one = {name: value[row] for name, value in norm.items()}
        others = {name: value for name, value in params.items() if name != "step"}
        expected = plain.apply({"params": {**others, "BatchNorm_0": one}}, x)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="a step is for num_steps"):
        nn.BatchNorm(num_steps=2).init(jax.random.key(0), x)


def test_the_omniglot_network_starts_as_the_authors_did():
    params = nn.omniglot_conv(20).init(jax.random.key(0), jnp.zeros(OMNIGLOT))["params"]
    assert abs(float(params["head"]["kernel"].std()) - 1) < 0.1  # N(0, 1), 1280 draws
    limit = (6 / (9 * 64 + 9 * 64)) ** 0.5  # Xavier: fan in and fan out of 9 x 64
    largest = float(jnp.abs(params["Conv_1"]["kernel"]).max())
    assert 0.99 * limit < largest <= limit
    biases = [params["head"]["bias"], *(params[f"BatchNorm_{i}"]["bias"] for i in range(4))]
    assert not any(bias.any() for bias in biases)


def test_a_bias_before_batch_norm_has_no_effect():
    # Why ConvNet and MLP leave it out.
    x = jax.random.normal(jax.random.key(0), (8, 3))
    norm = nn.BatchNorm()
    params = norm.init(jax.random.key(1), x)
    shifted = norm.apply(params, x + jnp.arange(3.0)[None])
    np.testing.assert_allclose(shifted, norm.apply(params, x), rtol=1e-5, atol=1e-6)


VARIANTS = {
    "finn": {},
    "nichol": {"reduce": "flatten", "use_scale": True},
    "max pool": {"pool": "max", "reduce": "flatten"},
    "max pool, gamma": {
        "pool": "max",
        "pool_padding": "SAME",
        "reduce": "flatten",
        "use_scale": True,
    },
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_networks_and_their_gradients_are_those_of_torch(options):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    model = nn.ConvNet(5, features=16, **options)
    rng = np.random.default_rng(0)
    x, labels = rng.random((10, 28, 28, 1)).astype(np.float32), np.arange(10) % 5
    params = model.init(jax.random.key(0), x)["params"]
    # Away from the start, so that gamma, beta and the head's bias count.
    params = jax.tree.map(
        lambda p: np.asarray(p) + 0.1 * rng.normal(size=p.shape).astype(np.float32), params
    )

    def loss(params):
        logits = model.apply({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

    (_, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    tensors = jax.tree.map(lambda p: torch.tensor(p, requires_grad=True), params)

    def convolution(y, kernel):
        stride = 2 if model.pool == "stride" else 1
        # SAME at stride 2 on even sizes pads after the image only, unlike PyTorch's padding=1.
        before, after = (1, 1) if stride == 1 or y.shape[-1] % 2 else (0, 1)
        y = functional.pad(y, (before, after, before, after))
        return functional.conv2d(y, kernel.permute(3, 2, 0, 1), stride=stride)

    def pool(y):
        return functional.max_pool2d(y, 2, ceil_mode=model.pool_padding == "SAME")

    y = torch.tensor(np.moveaxis(x, -1, 1))
    for i in range(4):
        norm = tensors[f"BatchNorm_{i}"]
        y = convolution(y, tensors[f"Conv_{i}"]["kernel"])
        y = functional.batch_norm(
            y, None, None, norm.get("scale"), norm["bias"], training=True, eps=1e-3
        )
        y = functional.relu(y)  # before pooling, in the order of Finn et al.
        y = pool(y) if model.pool == "max" else y
    y = y.mean((2, 3)) if model.reduce == "mean" else y.permute(0, 2, 3, 1).flatten(1)
    expected = y @ tensors["head"]["kernel"] + tensors["head"]["bias"]
    functional.cross_entropy(expected, torch.tensor(labels)).backward()

    np.testing.assert_allclose(logits, expected.detach().numpy(), rtol=1e-5, atol=1e-5)
    jax.tree.map(
        lambda g, t: np.testing.assert_allclose(g, t.grad.numpy(), rtol=1e-4, atol=1e-5),
        gradient,
        tensors,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduce": "max"}, 'reduce must be "mean" or "flatten", got \'max\''),
        ({"pool": "mean"}, 'pool must be "stride" or "max", got \'mean\''),
        ({"pool": "max", "depth": 5}, "images of 1 x 1 are smaller than the 2 x 2 window"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(nn.ConvNet(5, **options).init, jax.random.key(0), jnp.zeros(OMNIGLOT))


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (nn.mini_imagenet_conv(5, jnp.bfloat16), (5, 32, 32, 3)),
        (nn.omniglot_mlp(5, jnp.bfloat16), OMNIGLOT),
    ],
)
def test_bfloat16_compute_keeps_float32_parameters_and_logits(model, x):
    images = jax.random.uniform(jax.random.key(0), x)
    params = model.init(jax.random.key(1), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    low, full = model.apply(params, images), model.clone(dtype=None).apply(params, images)
    assert low.dtype == jnp.float32
    assert jnp.abs(low - full).max() > 0  # it was computed in bfloat16 indeed
    np.testing.assert_allclose(low, full, atol=0.1 * float(jnp.abs(full).max()))
