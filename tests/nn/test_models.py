"""The networks of the papers: sizes counted by hand, and the same weights in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import nn
from metajax.nn import papers

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
        (
            {"pool": "max", "pool_padding": "HALF"},
            'padding must be "SAME" or "VALID", got \'HALF\'',
        ),
        ({"depth": -1}, "ConvNet: depth must be a non-negative integer, got -1"),
        ({"norm_steps": -1}, "num_steps must be a non-negative integer, got -1"),
        ({"outputs": 0}, "outputs must be a positive integer, got 0"),
    ],
)
def test_unknown_options_are_refused(options, message):
    model = nn.ConvNet(**{"outputs": 5, **options})
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(OMNIGLOT))


@pytest.mark.parametrize("network", [nn.MLP, nn.ResNet])
@pytest.mark.parametrize(
    ("features", "message"),
    [
        (32, r"features must be one width per layer, such as \(64, 64\), got 32"),
        ((4, 0), "each of features must be a positive integer, got 0"),
    ],
)
def test_widths_that_are_none_are_refused(network, features, message):
    model = network(outputs=5, features=features)
    with pytest.raises(ValueError, match=f"{network.__name__}: {message}"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(OMNIGLOT))


@pytest.mark.parametrize(
    ("model", "x"),
    [
        pytest.param(
            nn.mini_imagenet_conv(5, jnp.bfloat16), (5, 32, 32, 3), marks=pytest.mark.slow
        ),
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


HEAD = ["head/bias", "head/kernel"]
BETAS = [f"BatchNorm_{i}/bias" for i in range(4)]
GAMMAS = [f"BatchNorm_{i}/scale" for i in range(4)]
# Model, inputs, parameters of normalizations, parameters that are an inner step.
ROLES = {
    "sinusoid_mlp": (nn.sinusoid_mlp(), (3, 1), [], []),
    "sinusoid_mlp_nichol": (nn.sinusoid_mlp_nichol(), (3, 1), [], []),
    "omniglot_conv": (nn.omniglot_conv(5), OMNIGLOT, BETAS, []),
    "omniglot_conv_nichol": (nn.omniglot_conv_nichol(5), OMNIGLOT, BETAS + GAMMAS, []),
    "omniglot_mlp": (nn.omniglot_mlp(5), OMNIGLOT, BETAS, []),
    "mini_imagenet_conv": (nn.mini_imagenet_conv(5), MINI_IMAGENET, BETAS, []),
    "mini_imagenet_conv_nichol": (
        nn.mini_imagenet_conv_nichol(5),
        MINI_IMAGENET,
        BETAS + GAMMAS,
        [],
    ),
    "conv_per_step": (nn.conv_per_step(5), OMNIGLOT, BETAS + GAMMAS, ["step"]),
    "resnet12": (
        nn.resnet12(5),
        MINI_IMAGENET,
        [f"BatchNorm_{i}/{name}" for i in range(16) for name in ("bias", "scale")],
        [],
    ),
}


def accepted(predicate, tree):
    """The paths below `params` that a predicate accepts, sorted."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree) if predicate(path)]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    return sorted(name.removeprefix("params/") for name in names)


@pytest.mark.parametrize(("model", "x", "norms", "steps"), ROLES.values(), ids=ROLES)
def test_predicates_accept_the_parameters_of_their_role(model, x, norms, steps):
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(x))
    for tree in (params, params["params"]):
        assert accepted(nn.is_head, tree) == HEAD
        assert accepted(nn.is_norm, tree) == sorted(norms)
        assert accepted(nn.is_step, tree) == steps


def test_every_network_is_in_the_table_of_roles():
    public = vars(nn).items()
    networks = {name for name, f in public if getattr(f, "__module__", "") == papers.__name__}
    assert networks == ROLES.keys()


def test_predicates_compare_whole_names():
    tree = {"head_of_state": 0, "overhead": 0, "step_size": 0, "stepped": {"step": {"x": 0}}}
    tree["LayerNorm_0"] = {"scale": 0}
    for predicate in (nn.is_head, nn.is_norm, nn.is_step):
        assert not accepted(predicate, tree)
        assert not predicate(())


@pytest.mark.parametrize("predicate", [nn.is_head, nn.is_norm, nn.is_step])
def test_predicates_refuse_what_is_no_key_path(predicate):
    with pytest.raises(ValueError, match=f"{predicate.__name__}: expected the key path .* 'head'"):
        predicate("head")


def test_gammas_of_both_signs_keep_the_order_of_the_paper():
    # A negative gamma turns the largest pixel into the smallest: pooling has to wait for it.
    block = nn.ConvBlock(nn.Conv(4), nn.BatchNorm(use_scale=True), pool=nn.max_pool)
    x = jax.random.normal(jax.random.key(0), (6, 8, 8, 2))
    params = jax.jit(block.init)(jax.random.key(1), x)
    params["params"]["norm"]["scale"] = jnp.asarray([1.0, -1.0, 0.5, -2.0])

    def layers(params, x):
        params = params["params"]
        x = block.conv.apply({"params": params["conv"]}, x)
        x = block.norm.apply({"params": params["norm"]}, x)
        return nn.max_pool(jax.nn.relu(x))

    found, expected = jax.jit(block.apply)(params, x), jax.jit(layers)(params, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
