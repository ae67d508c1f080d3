"""The convolution against `lax.conv_general_dilated`, and what it compiles to."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import metajax
from metajax import machine, nn
from metajax.nn.products import METHODS

native_conv = functools.partial(nn.conv, method="native")
conv_module = sys.modules["metajax.nn.conv"]  # The attribute `metajax.nn.conv` is the function.

CASES = [
    # image, kernel, strides, padding
    ((7, 7), (3, 3), (1, 1), "SAME"),
    ((8, 8), (3, 3), (2, 2), "SAME"),
    ((7, 9), (3, 3), (2, 2), "VALID"),
    ((8, 7), (5, 5), (3, 2), "SAME"),
    ((7, 8), (3, 2), (3, 1), "VALID"),
    ((6, 6), (1, 1), (1, 1), "SAME"),
    ((6, 7), (1, 1), (3, 3), "VALID"),
    ((5, 5), (3, 3), (2, 2), ((2, 1), (0, 3))),
    ((6, 6), (3, 3), (1, 1), ((-1, 0), (1, -2))),
]
ROW_SUMS = [
    ((7, 6), (3, 3), (1, 1), "SAME"),
    ((7, 8), (3, 2), (1, 3), "VALID"),
    ((6, 6), (1, 3), (1, 1), "SAME"),
    ((6, 6), (2, 3), (1, 2), ((-1, 0), (1, -2))),
]


def reference(x, kernel, *, strides=(1, 1), padding="SAME"):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def operands(image, window, *, seed=0, tasks=(), channels=3):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(*tasks, 3, *image, channels)))
    return x, jnp.asarray(rng.normal(size=(*tasks, *window, channels, 4)))


def assert_close(found, expected, tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        found,
        expected,
    )


@pytest.mark.parametrize(("image", "window", "strides", "padding"), CASES)
def test_every_method_is_the_same_in_float32(image, window, strides, padding):
    x, kernel = (a.astype(jnp.float32) for a in operands(image, window))
    methods = [m for m in METHODS if m != "row_sums" or strides[0] == 1]
    expected = reference(x, kernel, strides=strides, padding=padding)
    for method in methods:
        found = nn.conv(x, kernel, strides=strides, padding=padding, method=method)
        assert_close(found, expected, 1e-5)


# Three examples one at a time, or two and the one left over, as well as all at once.
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("image", "window", "strides", "padding", "method", "example_chunk"),
    [(*case, "patches", None) for case in CASES]
    + [(*CASES[0], "patches", 1), (*CASES[1], None, 2), (*CASES[5], None, 2)]
    + [(*case, "row_sums", None) for case in ROW_SUMS]
    + [(*ROW_SUMS[0], "row_sums", 1), (*ROW_SUMS[1], "row_sums", 2)]
    + [(*CASES[1], "native", 2)],
)
def test_value_and_derivatives_of_every_mode_are_those_of_lax(
    image, window, strides, padding, method, example_chunk
):
    at = operands(image, window)
    along = operands(image, window, seed=1)

    def derivatives(conv):
        def value(x, kernel):
            return jnp.sum(jnp.sin(conv(x, kernel, strides=strides, padding=padding)))

        gradient = jax.grad(value, (0, 1))

        def slope(x, kernel):
            return sum(jnp.vdot(g, v) for g, v in zip(gradient(x, kernel), along, strict=True))

        return {
            "value": conv(*at, strides=strides, padding=padding),
            "forward": jax.jvp(value, at, along)[1],
            "linearize": jax.linearize(value, *at)[1](*along),
            "reverse": gradient(*at),
            "forward over reverse": jax.jvp(gradient, at, along)[1],
            "reverse over reverse": jax.grad(slope, (0, 1))(*at),
        }

    ours = functools.partial(nn.conv, method=method, example_chunk=example_chunk)
    found, expected = (jax.jit(derivatives, static_argnums=0)(c) for c in (ours, reference))
    assert found["value"].dtype == jnp.float64
    assert_close(found, expected, 1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("shared_images", "chunk"), [(False, None), (True, None), (False, 2)])
def test_vmap_over_kernels_is_a_loop_over_tasks(shared_images, chunk, method):
    x, kernels = operands((7, 8), (3, 3), tasks=(3,))
    strides = (1 if method == "row_sums" else 2, 2)

    def hessian_vector(conv, x, kernel):
        gradient = jax.grad(lambda k: jnp.sum(conv(x, k, strides=strides) ** 3))
        return gradient(kernel), jax.jvp(gradient, (kernel,), (jnp.cos(kernel),))[1]

    ours = functools.partial(nn.conv, method=method, example_chunk=chunk)
    mapped = jax.vmap(functools.partial(hessian_vector, ours), (None if shared_images else 0, 0))
    found = jax.jit(mapped)(x[0] if shared_images else x, kernels)
    looped = [
        hessian_vector(reference, x[0] if shared_images else x[t], kernels[t]) for t in range(3)
    ]
    assert_close(found, jax.tree.map(lambda *leaves: jnp.stack(leaves), *looped), 1e-10)


def test_a_cpu_takes_as_many_examples_as_make_two_megabytes(monkeypatch):
    monkeypatch.setattr(machine, "last_cache_bytes", lambda: 0)
    assert conv_module.default_example_chunk(75, 49 * 576 * 4) == 15
    assert conv_module.default_example_chunk(75, 100) == 75
    assert conv_module.default_example_chunk(101, 2**19) == 4
    assert conv_module.default_example_chunk(3, 2**30) == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert conv_module.default_example_chunk(75, 2**30) == 75


def test_a_cpu_whose_cache_holds_them_takes_all_examples_at_once(monkeypatch):
    monkeypatch.setattr(machine, "last_cache_bytes", lambda: 32 * 9 * 2**20)
    assert conv_module.default_example_chunk(75, 49 * 576 * 4) == 75
    assert conv_module.default_example_chunk(101, 2**19) == 4


@pytest.mark.parametrize(
    ("channels", "features", "strides", "rows", "expected"),
    [
        (32, 32, (1, 1), 42, "row_sums"),  # Mini-ImageNet's second layer
        (3, 32, (1, 1), 84, "patches"),  # its first
        (16, 32, (1, 2), 42, "row_sums"),
        (64, 64, (2, 2), 14, "patches"),  # Omniglot's second
        (32, 32, (1, 1), 5, "patches"),
    ],
)
def test_rows_are_summed_last_where_less_is_written(
    channels, features, strides, rows, expected, monkeypatch
):
    arguments = ((3, 3, channels, features), strides, (rows, rows))
    assert conv_module.default_method(*arguments) == expected
    for backend, method in {"gpu": "patches", "tpu": "native"}.items():
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert conv_module.default_method(*arguments) == method


def test_the_default_takes_the_form_that_the_rule_says():
    def products(features):
        x, kernel = jnp.ones((2, 12, 12, 8)), jnp.ones((3, 3, 8, features))
        text = str(jax.make_jaxpr(nn.conv)(x, kernel))
        return [line.split("=")[0] for line in text.splitlines() if "dot_general[" in line]

    assert "f32[336,24]" in products(8)[0]  # 2 x 14 rows of 12 pixels, 3 x 8 features
    assert "f32[288,64]" in products(64)[0]  # 2 x 12 rows of 12 pixels


@pytest.mark.parametrize("method", METHODS)
def test_no_examples_make_none(method):
    x, kernel = jnp.ones((0, 5, 6, 2)), jnp.ones((3, 3, 2, 4))
    assert nn.conv(x, kernel, method=method).shape == (0, 5, 6, 4)


def test_sums_over_rows_are_refused_where_rows_are_skipped():
    with pytest.raises(
        ValueError, match=r'"row_sums" needs a vertical stride of 1, got strides \(2, 1\)'
    ):
        nn.conv(jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4)), strides=(2, 1), method="row_sums")


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"method must be one of patches, .* got 'winograd'"):
        nn.conv(jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4)), method="winograd")


@pytest.mark.optimized
@pytest.mark.parametrize("order", [1, 2])
def test_of_many_examples_only_a_chunk_of_patches_is_in_memory(order):
    x, kernel = jnp.ones((64, 32, 32, 8)), jnp.ones((3, 3, 8, 8))

    def temporary_bytes(chunk):
        conv = functools.partial(nn.conv, method="patches", example_chunk=chunk)

        def value(x, kernel):
            return jnp.sum(conv(x, kernel) ** 2)

        def after_a_step(x, kernel):
            return value(x, kernel - jax.grad(value, 1)(x, kernel))

        gradient = jax.jit(jax.grad(value if order == 1 else after_a_step, (0, 1)))
        return gradient.lower(x, kernel).compile().memory_analysis().temp_size_in_bytes

    patches = 64 * 32 * 32 * 72 * 4
    assert temporary_bytes(4) < patches < temporary_bytes(64)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_what_comes_before_is_differentiated_with_all_it_is_made_of(chunk):
    x, kernel = operands((7, 8), (3, 3))
    at = {"x": x, "kernel": kernel, "factor": jnp.asarray([1.5, -0.5, 2.0])}

    def value(convolution, args):
        def before(x):
            return jnp.tanh(x * args["factor"][None, None, None])

        return jnp.sum(jnp.sin(convolution(args["x"], args["kernel"], before)))

    def derivatives(convolution):
        gradient = jax.grad(functools.partial(value, convolution))
        return gradient(at), jax.jvp(gradient, (at,), (jax.tree.map(jnp.cos, at),))[1]

    expected = derivatives(lambda x, kernel, before: reference(before(x), kernel))
    native = derivatives(lambda x, kernel, before: native_conv(x, kernel, before=before))
    ours = functools.partial(nn.conv, example_chunk=chunk)
    found = derivatives(lambda x, kernel, before: ours(x, kernel, before=before))
    assert_close(found, expected, 1e-10)
    assert_close(native, expected, 1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_what_comes_after_is_of_each_example(chunk):
    at = operands((7, 8), (3, 3))

    def after(y):
        return {"pooled": nn.max_pool(y), "square": jnp.mean(y**2, axis=(1, 2))}

    def derivatives(convolution):
        def value(x, kernel):
            found = convolution(x, kernel)
            return jnp.sum(jnp.sin(found["pooled"])) + jnp.sum(found["square"] ** 2)

        gradient = jax.grad(value, (0, 1))
        return convolution(*at), gradient(*at), jax.jvp(gradient, at, jax.tree.map(jnp.cos, at))[1]

    expected = derivatives(lambda x, kernel: after(reference(x, kernel)))
    ours = functools.partial(nn.conv, after=after, example_chunk=chunk)
    for convolution in (ours, functools.partial(native_conv, after=after)):
        assert_close(derivatives(convolution), expected, 1e-10)


@pytest.mark.optimized
def test_an_output_that_is_used_up_is_not_in_memory():
    x, kernel = jnp.ones((64, 32, 32, 8)), jnp.ones((3, 3, 8, 32))

    def temporary_bytes(pool):
        after, last = (nn.max_pool, lambda y: y) if pool == "after" else (None, nn.max_pool)
        convolution = functools.partial(nn.conv, after=after, example_chunk=4)
        gradient = jax.jit(jax.grad(lambda x, k: jnp.sum(last(convolution(x, k)) ** 2), (0, 1)))
        return gradient.lower(x, kernel).compile().memory_analysis().temp_size_in_bytes

    output = 64 * 32 * 32 * 32 * 4
    assert temporary_bytes("after") < temporary_bytes("outside") - output / 2


def test_bfloat16_accumulates_in_float32():
    # 1 + 256 addends of 2^-8 make 2; summed in bfloat16, which has 8 bits, each is lost.
    x = jnp.full((1, 1, 1, 257), 2.0**-8, jnp.bfloat16).at[..., 0].set(1)
    kernel = jnp.ones((1, 1, 257, 1), jnp.bfloat16)
    y = nn.conv(x, kernel)
    assert y.dtype == jnp.bfloat16
    assert float(y.item()) == 2.0
    tangent = jax.jvp(nn.conv, (x, kernel), (x, kernel))[1]
    gradient = jax.grad(lambda k: nn.conv(x, k).astype(jnp.float32).sum())(kernel)
    assert tangent.dtype == gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient[0, 0, :, 0], x[0, 0, 0])


def test_images_of_integers_take_the_type_of_the_kernel():
    y = nn.conv(jnp.ones((1, 4, 4, 1), jnp.uint8), jnp.ones((3, 3, 1, 2)), padding="VALID")
    np.testing.assert_array_equal(y, np.full((1, 2, 2, 2), 9, np.float32))
    assert y.dtype == jnp.float32


@pytest.mark.parametrize(
    ("image", "kernel", "options", "message"),
    [
        ((2, 8, 8, 3), (3, 3, 1, 4), {}, "images have 3 channels, the kernel takes 1"),
        ((8, 8, 3), (3, 3, 3, 4), {}, r"got shapes \(8, 8, 3\) and \(3, 3, 3, 4\)"),
        ((2, 2, 2, 3), (3, 3, 3, 4), {"padding": "VALID"}, "3 x 3 does not fit images of 2 x 2"),
        ((2, 8, 8, 3), (3, 3, 3, 4), {"padding": "HALF"}, "padding must be .* got 'HALF'"),
        ((2, 8, 8, 3), (3, 3, 3, 4), {"padding": ((1, 1),)}, "padding must be"),
        ((2, 8, 8, 3), (3, 3, 3, 4), {"padding": 1}, "padding must be .* got 1"),
        ((2, 8, 8, 3), (3, 3, 3, 4), {"padding": ((1,), (1, 2))}, "padding must be .* integers"),
        (
            (2, 8, 8, 3),
            (3, 3, 3, 4),
            {"padding": ((0.5, 1), (1, 1))},
            r"padding must be .* got \(\(0.5",
        ),
        ((2, 8, 8, 3), (3, 3, 3, 4), {"strides": 2}, "strides must be two .* got 2"),
        ((2, 8, 8, 3), (3, 3, 3, 4), {"strides": (0, 1)}, r"strides must be .* got \(0, 1\)"),
        ((2, 8, 8, 3), (3, 3, 3, 4), {"strides": (1.5, 1)}, r"strides must be .* got \(1.5, 1\)"),
    ],
)
def test_errors_name_what_does_not_fit(image, kernel, options, message):
    for convolution in (nn.conv, native_conv):
        with pytest.raises(ValueError, match=message):
            convolution(jnp.zeros(image), jnp.zeros(kernel), **options)


@pytest.mark.parametrize("before", [jnp.sum, lambda x: (x, x), lambda x: x[1:]])
def test_what_comes_before_is_elementwise(before):
    for convolution in (nn.conv, native_conv):
        with pytest.raises(
            ValueError, match=r"before must be elementwise and keep the shape \(2, 8, 8, 3\)"
        ):
            convolution(jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 4)), before=before)


def test_what_comes_after_keeps_the_examples():
    for convolution in (nn.conv, native_conv):
        with pytest.raises(ValueError, match="after must return arrays of 2 examples"):
            convolution(jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 4)), after=jnp.sum)


def test_a_chunk_of_no_examples_is_refused():
    with pytest.raises(ValueError, match="example_chunk must be a positive integer, got 0"):
        nn.conv(jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 4)), example_chunk=0)


def lowered_meta_gradient(convolution):
    """StableHLO of second-order MAML on the Omniglot network, tasks under `vmap`."""
    model = nn.ConvNet(5, features=8, convolution=convolution)

    def loss(params, batch, rng):
        x, labels = batch
        logits = model.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), {}

    learner = metajax.maml(loss, optax.sgd(0.1), optax.sgd(0.1), num_steps=2)
    batch = jnp.zeros((3, 5, 28, 28, 1)), jnp.zeros((3, 5), jnp.int32)
    state = learner.init(model.init(jax.random.key(0), batch[0][0]))
    episodes = metajax.Episode(batch, batch)
    return jax.jit(learner.update).lower(state, episodes, jax.random.key(0)).as_text()


def convolutions(module):
    return [line for line in module.splitlines() if "stablehlo.convolution" in line]


def grouped(module):
    one = ("feature_group_count = 1 ", "batch_group_count = 1 ")
    return [line for line in convolutions(module) if not all(count in line for count in one)]


def test_the_meta_gradient_is_made_of_matrix_products():
    module = lowered_meta_gradient(nn.conv)
    assert "stablehlo.dot_general" in module
    assert not convolutions(module)


def test_the_convolution_of_lax_becomes_a_grouped_one():
    # What the test above guards against, and the proof that it can fail.
    assert grouped(lowered_meta_gradient(native_conv))


@pytest.mark.parametrize("method", ["patches", "row_sums"])
def test_integers_stay_exact(method):
    x = jnp.full((1, 2, 2, 1), 2**25 + 1, jnp.int32)
    kernel = jnp.ones((1, 1, 1, 1), jnp.int32)
    assert jnp.array_equal(nn.conv(x, kernel, method=method), x)
