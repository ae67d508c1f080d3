"""Tasks of one's own: functions, registered classes, and what `jit` is told of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import Episode
from metajax.tasks import FewShot, Sinusoid, StreamedFewShot, as_tasks, meta_batch

KEY = jax.random.key(0)

sample_batch = jax.jit(meta_batch, static_argnums=1)


def line(slope, rng):
    x = jax.random.normal(rng, (4, 1))
    return Episode((x[:1], slope * x[:1]), (x[1:], slope * x[1:]))


def steep(rng):
    return line(2.0, rng)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Line:
    slope: jax.Array

    def sample(self, rng):
        return line(self.slope, rng)


class Unregistered:
    def __init__(self, slope):
        self.slope = slope

    def sample(self, rng):
        return line(self.slope, rng)


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(
    "tasks",
    [
        steep,
        as_tasks(steep),
        jax.jit(steep),
        Line(jnp.array(2.0)),
        Line(jnp.array(2.0)).sample,
        jax.tree_util.Partial(line, jnp.array(2.0)),
        Unregistered(2.0),  # of use where nothing is compiled, or where it is closed over
    ],
)
def test_tasks_in_every_form_are_drawn_alike(tasks):
    expected = jax.vmap(steep)(jax.random.split(KEY, 3))
    assert_equal(meta_batch(tasks, 3, KEY), expected)
    assert_equal(jax.jit(lambda rng: meta_batch(tasks, 3, rng))(KEY), expected)


@pytest.mark.parametrize("rng", [jax.random.PRNGKey(7), np.array([0, 7], np.uint32)])
@pytest.mark.parametrize("tasks", [steep, Sinusoid()])
def test_keys_of_either_kind(tasks, rng):
    assert_equal(meta_batch(tasks, 3, rng), meta_batch(tasks, 3, jax.random.key(7)))


def test_numpy_integers_count_tasks():
    assert meta_batch(steep, np.int64(3), KEY).query[0].shape == (3, 3, 1)


@pytest.mark.parametrize(
    "tasks",
    [
        Sinusoid(),
        Line(jnp.array(2.0)),
        FewShot(np.zeros((2, 2, 1, 1, 1), np.uint8), ways=2, shots=1, queries=1),
        StreamedFewShot(np.zeros((2, 2, 1, 1, 1), np.uint8), ways=2, shots=1, queries=1),
        jax.tree_util.Partial(line, jnp.array(2.0)),
    ],
)
def test_pytrees_stay_what_they_are(tasks):
    assert as_tasks(tasks) is tasks


def test_a_function_is_static_and_compiled_once():
    traces = []

    def tasks(rng):
        traces.append(rng)
        return steep(rng)

    for seed in range(3):
        sample_batch(as_tasks(tasks), 3, jax.random.key(seed))
    assert len(traces) == 1
    assert not jax.tree.leaves(as_tasks(tasks))


def test_data_are_arguments():
    for tasks in (Line(jnp.array(2.0)), jax.tree_util.Partial(line, jnp.array(2.0))):
        assert_equal(sample_batch(as_tasks(tasks), 3, KEY), sample_batch(as_tasks(steep), 3, KEY))
        assert jax.tree.leaves(as_tasks(tasks)) == [2.0]


def test_everything_closed_over_is_traced():
    """A family of task distributions under `vmap`, and the gradient of what it is made of."""

    def mean(slope):
        tasks = (Line(slope), lambda rng: line(slope, rng), Unregistered(slope))
        return sum(meta_batch(t, 3, KEY).query[1].sum() for t in tasks)

    slopes = jnp.arange(3.0)
    np.testing.assert_allclose(jax.vmap(jax.grad(mean))(slopes), [mean(1.0)] * 3, rtol=1e-6)
