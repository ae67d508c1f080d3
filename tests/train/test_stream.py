"""Meta-batches of any iterator: the same training as on the device, and resumed where it was."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import train
from metajax.tasks import Sinusoid, meta_batch
from metajax.train import task_sources
from tests.train.runs import apply, assert_equal, initial, loss

KEY = jax.random.key(1)
SETTINGS = {
    "key": KEY,
    "num_meta_steps": 9,
    "meta_batch_size": 3,
    "steps_per_call": 4,
    "checkpoint_every": 4,
    "show_progress": False,
}


def learner():
    return metajax.maml(loss, optax.sgd(0.01), optax.adam(1e-2), num_steps=2)


def fit(tasks, **changes):
    return train.fit(learner(), initial(), tasks, **{**SETTINGS, **changes})


DRAW = jax.jit(lambda step: meta_batch(Sinusoid(), 3, jax.random.fold_in(KEY, step)))


def opened(starts=None):
    def open_at(start):
        if starts is not None:
            starts.append(start)
        return (jax.tree.map(np.asarray, DRAW(step)) for step in itertools.count(start))

    return train.Stream(open_at)


def by_hand(steps):
    state, one = learner().init(initial()), jax.jit(learner().update)
    for step in range(steps):
        state, _ = one(state, DRAW(step), KEY)  # this loss does not use its key
    return state


@pytest.mark.parametrize("block_steps", [100, 2])
def test_every_meta_batch_is_taken_once_and_in_order(block_steps, monkeypatch):
    size = sum(x.nbytes for x in jax.tree.leaves(DRAW(0)))
    monkeypatch.setattr(task_sources, "BLOCK_BYTES", block_steps * size)
    state = fit(opened()).state
    for found, expected in zip(jax.tree.leaves(state), jax.tree.leaves(by_hand(9)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_a_resumed_run_opens_the_stream_where_it_continues(tmp_path):
    whole, starts = fit(opened()), []
    config = {"run": "stream"}
    fit(opened(starts), workdir=tmp_path, num_meta_steps=4, config=config)
    resumed = fit(opened(starts), workdir=tmp_path, config=config)
    assert starts == [0, 4]
    assert_equal(resumed.state, whole.state)


def test_a_loader_of_pytorch_is_a_stream():
    torch = pytest.importorskip("torch")
    x = np.linspace(-1, 1, 60, dtype=np.float32).reshape(12, 5, 1)
    dataset = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(np.sin(x)))
    loader = torch.utils.data.DataLoader(dataset, batch_size=3)

    def open_at(step):
        repeated = itertools.chain.from_iterable(itertools.repeat(loader))
        episodes = (metajax.Episode((a, b), (a, b)) for a, b in repeated)
        return itertools.islice(episodes, step, None)

    result = fit(train.Stream(open_at))
    state = learner().init(initial())
    for step in range(9):
        rows = jnp.asarray(x[3 * (step % 4) :][:3])
        batch = rows, jnp.sin(rows)
        state, _ = jax.jit(learner().update)(state, metajax.Episode(batch, batch), KEY)
    leaves = zip(jax.tree.leaves(result.state), jax.tree.leaves(state), strict=True)
    for found, expected in leaves:
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    assert apply(result.state.meta_params.params, jnp.ones((1, 1))).shape == (1, 1)


def test_a_stream_that_ends_or_is_no_stream_is_refused():
    few = train.Stream(lambda start: (DRAW(step) for step in range(start, 6)))
    with pytest.raises(ValueError, match="ended before meta-step 6"):
        fit(few)
    with pytest.raises(ValueError, match="has 3 tasks, but meta_batch_size=2"):
        fit(opened(), meta_batch_size=2)
    with pytest.raises(ValueError, match="a meta-batch must be of type Episode"):
        fit(train.Stream(lambda start: itertools.repeat(np.zeros(3))))
    with pytest.raises(ValueError, match=r"open_at of the Stream must be a function \(step\)"):
        fit(train.Stream(iter([DRAW(0)])))
    with pytest.raises(ValueError, match="must return an iterator of Episode, got int"):
        fit(train.Stream(lambda start: 3))
    sizes = (jax.tree.map(lambda x, i=i: x[:, : 5 + i], DRAW(i)) for i in itertools.count())
    with pytest.raises(ValueError, match=r"differ in their shapes .*: pad them, with a mask"):
        fit(train.Stream(lambda start: sizes))
    with pytest.raises(ValueError, match=r"or a train\.Stream"):
        fit(iter([DRAW(0)]))


def test_an_iterator_that_is_opened_once_loses_no_meta_batch(tmp_path):
    """A run without a configuration looks at the first one to identify itself."""

    def trained(**options):
        batches = (
            metajax.Episode(np.full((2, 3), i, np.float32), np.full((2, 3), i, np.float32))
            for i in range(4)
        )
        return train.fit(
            metajax.maml(
                lambda params, batch, rng: (jnp.mean((params - batch) ** 2), {}),
                optax.sgd(0.1),
                optax.sgd(0.1),
            ),
            jnp.zeros(()),
            train.Stream(lambda step: batches),
            key=jax.random.key(0),
            num_meta_steps=4,
            meta_batch_size=2,
            steps_per_call=2,
            checkpoint_every=2,
            show_progress=False,
            **options,
        ).state.meta_params.params

    np.testing.assert_array_equal(trained(workdir=tmp_path), trained())
