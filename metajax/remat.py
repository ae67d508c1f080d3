"""Whether an inner step is stored for the backward pass, or recomputed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax.extend.core import Var

from metajax.base import Array, Params, PyTree

# From these inner steps, and from these bytes of activations for each byte of the parameters,
# recomputing took a third of the memory or less on a CPU, and at most a sixth more time
# (`python -m benchmarks.remat`). So does recomputing fewer steps, of activations that are so large
# that to write and read them takes as long as to recompute them.
STEPS, RATIO, LARGE = 10, 4.0, 2**28

_logger = logging.getLogger(__name__)


def recomputing_pays(
    num_steps: int,
    loss: Callable[..., Any],
    adapting: Params,
    operands: Sequence[PyTree],
    params: Params,
) -> bool:
    """Whether `second_order()` recomputes inner steps, by what the gradient of their loss keeps.

    Args:
      num_steps: the number of inner steps.
      loss: `(adapting, *operands) -> (scalar, aux)`.
      adapting: the parameters that adapt.
      operands: the other arguments of the loss.
      params: all parameters of the model.
    """
    if num_steps < 2 or jax.default_backend() != "cpu":  # others are not measured
        return False
    kept, size = kept_bytes(loss, adapting, operands), _num_bytes(jax.tree.leaves(params))
    ratio = kept / max(size, 1)
    pays = ratio > RATIO and (num_steps >= STEPS or num_steps * kept >= LARGE)
    _logger.info(
        "second_order() %s each inner step, whose activations take %.2g times the memory of the "
        "parameters, %.3g MB.",
        "recomputes" if pays else "stores",
        ratio,
        kept / 1e6,
    )
    return pays


def kept_bytes(loss: Callable[..., Any], adapting: Params, operands: Sequence[PyTree]) -> int:
    """What the gradient of a loss keeps of its forward pass.

    Its arguments and the arrays in its closure are there anyway, and do not count.
    """

    def kept(adapting: Params, *operands: PyTree) -> list[Array]:
        return jax.tree.leaves(jax.vjp(lambda p: loss(p, *operands), adapting, has_aux=True)[1])

    program = jax.make_jaxpr(kept)(adapting, *operands).jaxpr
    given = {*program.invars, *program.constvars}
    stored = {x for x in program.outvars if isinstance(x, Var)} - given
    return _num_bytes(x.aval for x in stored)


def _num_bytes(arrays: Iterable[Any]) -> int:
    return sum(x.size * x.dtype.itemsize for x in arrays)
