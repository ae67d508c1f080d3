"""Tasks on the host: training equals that on the device bit for bit, and reads ahead."""

import contextlib
import functools
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import train
from metajax.tasks import FewShot, StreamedFewShot
from metajax.train import task_sources
from metajax.train.task_sources import advance, make_source
from tests.train.runs import assert_equal, lines

SETTINGS = {"ways": 3, "shots": 1, "queries": 2, "rotate": True}


# What fit reads for a meta-batch of 2 of these: 2 * 3 * 3 * 5 * 5 bytes.
STEP_BYTES = 450


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (7, 6, 5, 5, 1), np.uint8)


@pytest.fixture
def mapped(images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    return np.load(tmp_path / "images.npy", mmap_mode="r")


def apply(params, x):
    hidden = jnp.tanh(x.reshape(len(x), -1) @ params["w"] + params["b"][None])
    return hidden @ params["head"]


def loss(params, batch, rng):
    x, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(apply(params, x), labels).mean(), {}


def fit(tasks, **changes):
    generator = np.random.default_rng(0)
    params = {
        "w": jnp.asarray(generator.normal(size=(25, 8)), jnp.float32),
        "b": jnp.zeros(8),
        "head": jnp.asarray(generator.normal(size=(8, 3)), jnp.float32),
    }
    settings = {
        "key": jax.random.key(1),
        "num_meta_steps": 26,
        "meta_batch_size": 2,
        "steps_per_call": 12,
        "checkpoint_every": 12,
        "show_progress": False,
    }
    learner = metajax.maml(loss, optax.sgd(0.1), optax.adam(1e-2), num_steps=2)
    return train.fit(learner, params, tasks, **{**settings, **changes})


@pytest.fixture(scope="module")
def resident(images):
    return fit(FewShot(images, **SETTINGS))


# Calls of 12, 12 and 2 meta-steps in blocks of that many, of 4 and 2, or of single steps.
@pytest.mark.parametrize("block_steps", [100, 5, 1])
def test_training_is_the_same_bit_for_bit(block_steps, mapped, resident, monkeypatch):
    monkeypatch.setattr(task_sources, "BLOCK_BYTES", block_steps * STEP_BYTES)
    fetched = []
    original = StreamedFewShot.fetch

    def fetch(self, draw):
        fetched.append((len(draw.classes), threading.current_thread().name))
        return original(self, draw)

    monkeypatch.setattr(StreamedFewShot, "fetch", fetch)
    result = fit(StreamedFewShot(mapped, **SETTINGS))
    assert_equal(result.state, resident.state)
    lengths, threads = zip(*fetched, strict=True)
    assert lengths == {100: (12, 12, 2), 5: (4,) * 6 + (2,), 1: (1,) * 26}[block_steps]
    assert all(name.startswith("metajax-stream") for name in threads)


def test_metrics_are_written_alike(mapped, images, tmp_path, monkeypatch):
    monkeypatch.setattr(task_sources, "BLOCK_BYTES", 5 * STEP_BYTES)
    fit(FewShot(images, **SETTINGS), workdir=tmp_path / "resident")
    fit(StreamedFewShot(mapped, **SETTINGS), workdir=tmp_path / "streamed")
    assert lines(tmp_path / "resident") == lines(tmp_path / "streamed")


def test_a_stopped_run_continues_with_the_same_tasks(mapped, resident, tmp_path):
    tasks = StreamedFewShot(mapped, **SETTINGS)
    first = fit(tasks, workdir=tmp_path, num_meta_steps=12)
    assert int(first.state.step) == 12
    assert_equal(fit(tasks, workdir=tmp_path).state, resident.state)


class Counting(StreamedFewShot):
    """Counts what is read."""

    fetches = 0

    def fetch(self, draw):
        Counting.fetches += 1
        return super().fetch(draw)


jax.tree_util.register_static(Counting)


def update_twice(tasks, run):
    """Makes two calls of four meta-steps."""
    calls = ((0, 4), (4, 4))
    source = make_source(tasks, 2, functools.partial(jax.random.fold_in, jax.random.key(0)))
    with contextlib.closing(source.blocks(calls)) as blocks:
        for _, length in calls:
            advance(run, None, tasks, blocks, length)


def test_one_block_is_read_while_the_one_before_is_used(images, monkeypatch):
    monkeypatch.setattr(task_sources, "BLOCK_BYTES", STEP_BYTES)
    monkeypatch.setattr(Counting, "fetches", 0)
    read, blocks = [], 8

    def run(state, tasks, block, *, length):
        # A busy device, until the next block is there, and then as long as one too many would take.
        wanted, patience = min(len(read) + 2, blocks), time.monotonic() + 60
        while Counting.fetches < wanted and time.monotonic() < patience:
            time.sleep(0.01)
        time.sleep(0.1)
        read.append(Counting.fetches)
        return state, {"x": np.zeros(length)}

    update_twice(Counting(images, **SETTINGS), run)
    assert read == [2, 3, 4, 5, 6, 7, 8, 8]


def test_what_goes_wrong_in_the_background_is_raised(images, monkeypatch):
    def fetch(self, draw):
        raise OSError("the disk is gone")

    monkeypatch.setattr(StreamedFewShot, "fetch", fetch)
    with pytest.raises(OSError, match="the disk is gone"):
        fit(StreamedFewShot(images, **SETTINGS))
    assert not [t for t in threading.enumerate() if t.name.startswith("metajax-stream")]
