"""The same weights and data through PyTorch: plain autograd and `higher`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import metajax
from metajax import nn
from tests.helpers import RECORDER, recorded_gradient

torch = pytest.importorskip("torch")
functional = torch.nn.functional

RATE, STEPS, TASKS, WAYS, FEATURES, SIZE = 0.4, 2, 3, 3, 4, 10
MODEL = nn.ConvNet(WAYS, features=FEATURES, depth=2)


def native(params, x):
    """The network of `MODEL` in plain JAX, with the convolution of `lax`."""
    p = params["params"]
    for i in range(2):
        x = lax.conv_general_dilated(
            x,
            p[f"Conv_{i}"]["kernel"],
            (2, 2),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        mean, variance = (f(x, (0, 1, 2), keepdims=True) for f in (jnp.mean, jnp.var))
        beta = p[f"BatchNorm_{i}"]["bias"][None, None, None]
        x = jax.nn.relu((x - mean) * lax.rsqrt(variance + 1e-3) + beta)
    return x.mean((1, 2)) @ p["head"]["kernel"] + p["head"]["bias"][None]


def data(dtype):
    """Tasks with their own images; the query holds twice as many as the support."""
    rng = np.random.default_rng(0)

    def batch(shots):
        labels = np.arange(WAYS * shots, dtype=np.int32) % WAYS
        x = rng.random((TASKS, len(labels), SIZE, SIZE, 1)).astype(dtype)
        return x, np.tile(labels, (TASKS, 1))

    return metajax.Episode(batch(2), batch(4))


def initial(dtype):
    params = MODEL.init(jax.random.key(0), jnp.zeros((2, SIZE, SIZE, 1)))
    return jax.tree.map(lambda p: jnp.asarray(p, dtype), params)


@functools.cache
def ours(apply, dtype, first_order=False):
    """The mean meta-gradient over the tasks."""

    def loss(params, batch, rng):
        x, labels = batch
        logits = apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), {}

    engine = metajax.first_order() if first_order else metajax.second_order()
    learner = metajax.maml(
        loss,
        optax.sgd(RATE),
        RECORDER,
        num_steps=STEPS,
        meta_gradient=engine,
        task_chunk=1,  # or the convolution of `lax` becomes a grouped one
    )
    return named(recorded_gradient(learner, initial(dtype), data(dtype)).params)


def named(params):
    """Flax parameters as PyTorch lays them out."""
    p = params["params"]
    arrays = {}
    for i in range(2):
        kernel = np.asarray(p[f"Conv_{i}"]["kernel"])
        arrays[f"conv{i}"] = np.transpose(kernel, (3, 2, 0, 1))
        arrays[f"beta{i}"] = np.asarray(p[f"BatchNorm_{i}"]["bias"])
    arrays["head"] = np.asarray(p["head"]["kernel"]).T
    arrays["bias"] = np.asarray(p["head"]["bias"])
    return arrays


class Net(torch.nn.Module):
    """The network of the test, written as its users would in PyTorch."""

    def __init__(self, arrays):
        super().__init__()
        for name, array in arrays.items():
            setattr(self, name, torch.nn.Parameter(torch.tensor(np.array(array))))

    def forward(self, x):
        return forward(dict(self.named_parameters()), x)


def forward(p, x):
    x = x.permute(0, 3, 1, 2)
    for i in range(2):
        # SAME padding at stride 2 of an even size pads at the end only; of an odd one, both.
        pad = (0, 1, 0, 1) if x.shape[-1] % 2 == 0 else (1, 1, 1, 1)
        x = functional.conv2d(functional.pad(x, pad), p[f"conv{i}"], stride=2)
        # PyTorch cannot differentiate twice without a weight.
        ones = torch.ones_like(p[f"beta{i}"])
        x = functional.batch_norm(x, None, None, ones, p[f"beta{i}"], training=True, eps=1e-3)
        x = torch.relu(x)
    return x.mean((2, 3)) @ p["head"].T + p["bias"]


def torch_loss(model, batch):
    x, labels = batch
    return functional.cross_entropy(model(torch.tensor(x)), torch.tensor(labels).long())


def by_autograd(arrays, episode, first_order):
    theta = {k: torch.tensor(np.array(v), requires_grad=True) for k, v in arrays.items()}
    phi = dict(theta)
    for _ in range(STEPS):
        value = torch_loss(lambda x, p=phi: forward(p, x), episode.support)
        grads = torch.autograd.grad(value, list(phi.values()), create_graph=not first_order)
        phi = {k: p - RATE * g for (k, p), g in zip(phi.items(), grads, strict=True)}
    value = torch_loss(lambda x: forward(phi, x), episode.query)
    return torch.autograd.grad(value, list(theta.values()))


def by_higher(arrays, episode, first_order):
    higher = pytest.importorskip("higher")
    net = Net(arrays)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    with higher.innerloop_ctx(net, optimizer, track_higher_grads=not first_order) as (fast, inner):
        for _ in range(STEPS):
            inner.step(torch_loss(fast, episode.support))
        # Without higher gradients its path is detached, and the gradient is at the last parameters.
        parameters = fast.parameters() if first_order else fast.parameters(time=0)
        return torch.autograd.grad(torch_loss(fast, episode.query), list(parameters))


def theirs(peer, dtype, first_order=False):
    arrays, episodes = named(initial(dtype)), data(dtype)
    tasks = [
        peer(arrays, jax.tree.map(lambda x, i=i: x[i], episodes), first_order) for i in range(TASKS)
    ]
    grads = [torch.stack(grad).mean(0).numpy() for grad in zip(*tasks, strict=True)]
    return dict(zip(arrays, grads, strict=True))


def assert_agree(found, expected, tolerance):
    assert set(found) == set(expected)
    for name, array in expected.items():
        scale = np.abs(array).max()
        assert scale > 1e-4  # a gradient of zero would agree with anything
        np.testing.assert_allclose(found[name], array, atol=tolerance * scale, rtol=tolerance)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of higher: no longer maintained
@pytest.mark.parametrize("first_order", [False, True], ids=["maml", "fomaml"])
@pytest.mark.parametrize("peer", [by_autograd, by_higher])
def test_the_meta_gradient_of_a_convolutional_net_with_batch_norm(peer, first_order):
    found = ours(MODEL.apply, np.float32, first_order)
    assert_agree(found, theirs(peer, np.float32, first_order), 1e-5)


def test_the_meta_gradient_of_a_net_in_plain_jax():
    assert_agree(ours(native, np.float32), theirs(by_autograd, np.float32), 1e-5)


@pytest.mark.usefixtures("float64")
def test_in_double_precision_the_agreement_is_to_rounding():
    assert_agree(ours(MODEL.apply, np.float64), theirs(by_autograd, np.float64), 1e-9)
