"""The same weights and data through PyTorch: plain autograd and `higher`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import nn
from tests.helpers import meta_gradient

torch = pytest.importorskip("torch")
functional = torch.nn.functional

RATE, STEPS, WAYS, FEATURES = 0.4, 2, 3, 8
MODEL = nn.ConvNet(WAYS, features=FEATURES, depth=2)


def loss(params, batch, rng):
    x, labels = batch
    logits = MODEL.apply(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), {}


def data(dtype):
    rng = np.random.default_rng(0)

    def batch(shots):
        labels = np.arange(WAYS * shots, dtype=np.int32) % WAYS
        return rng.random((len(labels), 14, 14, 1)).astype(dtype), labels

    return metajax.Episode(batch(2), batch(4))


def initial(dtype):
    params = MODEL.init(jax.random.key(0), jnp.zeros((2, 14, 14, 1)))
    return jax.tree.map(lambda p: jnp.asarray(p, dtype), params)


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


def torch_loss(logits, labels):
    return functional.cross_entropy(logits, torch.tensor(labels, dtype=torch.int64))


def by_autograd(arrays, episode, first_order):
    theta = {k: torch.tensor(np.array(v), requires_grad=True) for k, v in arrays.items()}
    phi = dict(theta)
    for _ in range(STEPS):
        value = torch_loss(forward(phi, torch.tensor(episode.support[0])), episode.support[1])
        grads = torch.autograd.grad(value, list(phi.values()), create_graph=not first_order)
        phi = {k: p - RATE * g for (k, p), g in zip(phi.items(), grads, strict=True)}
    value = torch_loss(forward(phi, torch.tensor(episode.query[0])), episode.query[1])
    grads = torch.autograd.grad(value, list(theta.values()))
    return {k: g.numpy() for k, g in zip(theta, grads, strict=True)}


def by_higher(arrays, episode, first_order):
    higher = pytest.importorskip("higher")
    net = Net(arrays)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    with higher.innerloop_ctx(net, optimizer, track_higher_grads=not first_order) as (fast, inner):
        for _ in range(STEPS):
            inner.step(torch_loss(fast(torch.tensor(episode.support[0])), episode.support[1]))
        value = torch_loss(fast(torch.tensor(episode.query[0])), episode.query[1])
        grads = torch.autograd.grad(value, list(fast.parameters(time=0)))
    return {k: g.numpy() for k, g in zip(arrays, grads, strict=True)}


@pytest.mark.filterwarnings("ignore")  # of higher, which is no longer maintained
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("peer", [by_autograd, by_higher])
def test_the_meta_gradient_of_a_convolutional_net_with_batch_norm(peer, first_order):
    if peer is by_higher and first_order:
        pytest.skip("higher detaches the whole path, so its time-0 parameters get no gradient")
    episode, params = data(np.float32), initial(jnp.float32)
    engine = metajax.first_order() if first_order else metajax.second_order()
    adapt = metajax.inner_loop(loss, optax.sgd(RATE), STEPS, meta_gradient=engine)
    found = named(meta_gradient(adapt, metajax.query_loss(loss), params, episode).params)
    expected = peer(named(params), episode, first_order)
    assert set(found) == set(expected)
    for name in found:
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5 * scale, rtol=1e-5)


@pytest.mark.usefixtures("float64")
def test_in_double_precision_the_agreement_is_to_rounding():
    episode, params = data(np.float64), initial(jnp.float64)
    adapt = metajax.inner_loop(loss, optax.sgd(RATE), STEPS)
    found = named(meta_gradient(adapt, metajax.query_loss(loss), params, episode).params)
    expected = by_autograd(named(params), episode, first_order=False)
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-9, atol=1e-12)
