"""The sine waves: what is drawn, from which ranges, and what the presets say."""

import math

import jax
import numpy as np
import pytest

from metajax.tasks import Sinusoid, meta_batch

NUM_TASKS = 4000

sample_batch = jax.jit(meta_batch, static_argnums=1)


def fit(x, y):
    """Recovers amplitude and phase of y = a sin(x - b) = (a cos b) sin x - (a sin b) cos x."""
    waves = np.stack([np.sin(x), -np.cos(x)], axis=-1)[..., 0, :].astype(np.float64)
    u, v = (np.linalg.pinv(waves) @ y)[..., 0].T
    return np.hypot(u, v), np.arctan2(v, u) % (2 * np.pi)


def assert_uniform(samples, low, high):
    """Kolmogorov-Smirnov: the largest gap to the uniform distribution, at the 0.1% level."""
    n = samples.size
    gap = np.abs(np.sort(samples.ravel()) - np.linspace(low, high, n)) / (high - low)
    assert gap.max() < 1.95 / math.sqrt(n)


@pytest.fixture(scope="module")
def episodes():
    tasks = Sinusoid(shots=10, queries=15)
    return jax.tree.map(np.asarray, sample_batch(tasks, NUM_TASKS, jax.random.key(0)))


def test_amplitude_and_phase_are_uniform_and_independent(episodes):
    amplitude, phase = fit(*episodes.support)
    assert_uniform(amplitude, 0.1, 5.0)
    assert_uniform(phase, 0.0, np.pi)
    assert abs(np.corrcoef(amplitude, phase)[0, 1]) < 3 / math.sqrt(NUM_TASKS)


def test_inputs_are_uniform_and_differ_between_support_and_query(episodes):
    (x_support, _), (x_query, _) = episodes
    assert x_support.shape == (NUM_TASKS, 10, 1)
    assert x_query.shape == (NUM_TASKS, 15, 1)
    assert_uniform(x_support, -5.0, 5.0)
    assert_uniform(x_query, -5.0, 5.0)
    assert np.unique(np.concatenate([x_support, x_query], axis=1)).size > 0.98 * NUM_TASKS * 25


def test_support_and_query_lie_on_one_wave(episodes):
    amplitude, phase = fit(*episodes.support)
    x, y = episodes.query
    np.testing.assert_allclose(
        amplitude[:, None, None] * np.sin(x - phase[:, None, None]), y, atol=1e-3
    )


def test_the_phase_is_subtracted():
    x, y = Sinusoid(amplitude=(2.0, 2.0), phase=(0.5, 0.5)).sample(jax.random.key(0)).support
    np.testing.assert_allclose(y, 2.0 * np.sin(x - 0.5), rtol=1e-5)


def test_query_grid_spans_the_range_and_leaves_the_support_alone():
    rng = jax.random.key(3)
    random = Sinusoid(queries=21, x_range=(-2.0, 3.0)).sample(rng)
    grid = Sinusoid(queries=21, x_range=(-2.0, 3.0), query_grid=True).sample(rng)
    np.testing.assert_allclose(grid.query[0], np.linspace(-2.0, 3.0, 21)[:, None], rtol=1e-6)
    np.testing.assert_array_equal(grid.support[0], random.support[0])
    np.testing.assert_array_equal(grid.support[1], random.support[1])


def test_support_range_narrows_the_support_only():
    tasks = Sinusoid(shots=10, queries=10, support_range=(0.0, 5.0))
    (x_support, _), (x_query, _) = sample_batch(tasks, 500, jax.random.key(4))
    assert_uniform(np.asarray(x_support), 0.0, 5.0)
    assert_uniform(np.asarray(x_query), -5.0, 5.0)


def test_finn_preset():
    tasks = Sinusoid.finn2017(5)
    assert tasks == Sinusoid(
        shots=5, queries=5, amplitude=(0.1, 5.0), phase=(0.0, math.pi), x_range=(-5.0, 5.0)
    )
    assert Sinusoid.finn2017(5, queries=100, query_grid=True).queries == 100


def test_an_oracle_is_told_amplitude_and_phase():
    rng = jax.random.key(5)
    plain, informed = (Sinusoid(informed=told).sample(rng) for told in (False, True))
    for (x, y), (known, same) in zip(plain, informed, strict=True):
        np.testing.assert_array_equal(known[:, :1], x)
        np.testing.assert_array_equal(same, y)
        amplitude, phase = known[0, 1:]
        np.testing.assert_array_equal(known[:, 1:], np.broadcast_to(known[0, 1:], (10, 2)))
        np.testing.assert_allclose(y, amplitude * np.sin(x - phase), rtol=1e-5)


def test_nichol_preset():
    tasks = Sinusoid.nichol2018()
    assert (tasks.shots, tasks.queries, tasks.query_grid) == (10, 50, True)
    support, _ = sample_batch(tasks, NUM_TASKS, jax.random.key(5))
    amplitude, phase = fit(*map(np.asarray, support))
    assert_uniform(amplitude, 0.1, 5.0)
    assert_uniform(phase, 0.0, 2 * np.pi)


def test_settings_are_static_and_equal_ones_compile_once():
    traces = []

    @jax.jit
    def sample(tasks, rng):
        traces.append(tasks)
        return tasks.sample(rng)

    assert jax.tree.leaves(Sinusoid()) == []
    first = sample(Sinusoid(), jax.random.key(0))
    again = sample(Sinusoid(), jax.random.key(0))
    other = sample(Sinusoid(), jax.random.key(1))
    assert len(traces) == 1
    np.testing.assert_array_equal(first.query[1], again.query[1])
    assert not np.array_equal(first.query[1], other.query[1])


def test_a_meta_batch_is_its_tasks_one_by_one():
    tasks, rng = Sinusoid(), jax.random.key(6)
    batch = meta_batch(tasks, 3, rng)
    for i, key in enumerate(jax.random.split(rng, 3)):
        jax.tree.map(
            lambda one, many, i=i: np.testing.assert_allclose(one, many[i], rtol=1e-5, atol=1e-6),
            tasks.sample(key),
            batch,
        )
