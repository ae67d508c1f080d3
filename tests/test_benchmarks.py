"""What the benchmarks count and render."""

import jax
import pytest

import metajax
from benchmarks import problems, tables


def test_the_page_is_rendered_from_the_records():
    assert tables.PAGE.read_text() == tables.render()


@pytest.mark.parametrize("order", [1, 2])
def test_useful_operations_are_what_the_compiled_program_cannot_do_without(order):
    problem = problems.omniglot(tasks=1, queries=1)
    engine = metajax.second_order() if order == 2 else metajax.first_order()
    update, arguments = problems.update(problem, meta_gradient=engine)
    counted = jax.jit(update).lower(*arguments).compile().cost_analysis()["flops"]
    # XLA counts element-wise operations as well.
    assert 1 <= counted / problems.useful_flops(problem, order) < 1.15


def test_peers_compute_the_same_meta_gradient():
    torch_peers = pytest.importorskip("benchmarks.torch_peers")
    problem = problems.omniglot(tasks=2, queries=1)
    update, arguments = problems.update(problem, meta_gradient=metajax.second_order())
    expected = float(jax.jit(update)(*arguments)[1]["meta_gradient_norm"])
    found = sum(float((g.detach() ** 2).sum()) for g in torch_peers.loop(problem, 2)()) ** 0.5
    assert found == pytest.approx(expected, rel=1e-3)
