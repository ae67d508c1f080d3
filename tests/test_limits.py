"""What a compiled program moves and does, from its text; least numbers of operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import hlo, ideas, meta_gradient, problems
from metajax import nn


def parsed(fn, *arguments):
    return hlo.parse(jax.jit(fn).lower(*arguments).compile().as_text())


def test_moved_bytes_of_a_sum():
    program = parsed(lambda a, b: a + 3.0 * b, jnp.ones(1000), jnp.ones(1000))
    assert hlo.moved_bytes(program) == 3 * 4 * 1000
    assert [times for _, times in hlo.executed(program)] == [1]
    assert set(hlo.kinds(program).values()) >= {"elementwise"}


def test_the_body_of_a_loop_counts_as_often_as_it_runs():
    def repeated(steps):
        matrix = jnp.full((64, 64), 1 / 64)
        body = lambda x, _: (jnp.tanh(x @ matrix), None)  # noqa: E731
        program = parsed(lambda x: jax.lax.scan(body, x, length=steps)[0], matrix)
        kinds = hlo.kinds(program)
        return sum(n for each, n in hlo.executed(program) if kinds[each.name] == "products")

    assert repeated(1000) == 1000 * repeated(1)


def test_of_a_large_array_only_the_slice_counts():
    rows = jnp.ones((1000, 256))
    read = parsed(lambda rows, i: 2.0 * rows[i], rows, 3)
    assert hlo.moved_bytes(read) < 10 * rows[0].nbytes

    def write(rows, row):
        body = lambda rows, i: (rows.at[i].set(row * i), None)  # noqa: E731
        return jax.lax.scan(body, rows, jnp.arange(1000))[0]

    written = parsed(write, rows, rows[0])
    assert hlo.moved_bytes(written) < 10 * rows.nbytes


def test_kinds_of_instructions():
    def fn(x):
        y = jnp.transpose(x, (1, 0, 2)).reshape(x.shape[1], -1)
        return jnp.sort(y @ y.T), jnp.sum(x, 0)

    found = hlo.kinds(parsed(fn, jnp.ones((8, 16, 32))))
    assert {"products", "reductions"} <= set(found.values())


@pytest.mark.parametrize("order", [1, 2])
def test_the_least_operations_of_a_convolutional_network_by_both_counts(order):
    problem = problems.omniglot(tasks=1, queries=1)
    by_layers = problems.useful_flops(problem, order)
    native = problem._replace(features=0)
    assert problems.useful_flops(native, order) == pytest.approx(by_layers, rel=0.05)


def test_winograd_is_the_same_convolution():
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (2, 7, 6, 3))
    kernel = jax.random.normal(keys[1], (3, 3, 3, 4))
    np.testing.assert_allclose(ideas.winograd(x, kernel), nn.conv(x, kernel), rtol=1e-4, atol=1e-4)


def test_a_library_that_takes_too_long_is_given_up():
    def compile_for_ever():
        try:
            while True:
                pass
        except TimeoutError as error:  # as a compiler does
            raise ValueError("a compiler's own") from error

    with pytest.raises(TimeoutError), meta_gradient.patience(0.2):
        compile_for_ever()
    with pytest.raises(KeyError), meta_gradient.patience(60.0):
        raise KeyError
