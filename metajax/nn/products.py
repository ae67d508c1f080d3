"""Three methods to compute a convolution; two of them are matrix products."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from metajax.base import Array

Convolve = Callable[[Array], Array]
Pads = Sequence[tuple[int, int]]


def by_patches(
    kernel: Array, strides: tuple[int, int], pads: Pads, out: Sequence[int]
) -> tuple[Convolve, int]:
    """Multiplies every patch, the window's content at one output position, with the kernel.

    Args:
      kernel: `[height, width, in_channels, out_channels]`.
      strides: vertical and horizontal step of the window.
      pads: `((top, bottom), (left, right))`.
      out: height and width of the output.

    Returns:
      The convolution of images, and the count of intermediate numbers that it writes per example.
    """
    (sh, sw), (oh, ow) = strides, out
    height, width, channels, features = kernel.shape
    patch = height * width * channels
    # On a CPU, XLA's product is slower if the length of its sums is no multiple of four.
    spare = -patch % 4
    # The longer of patch and output goes last, which makes the product in the kernel's gradient
    # faster on a CPU. All four axes are transposed at once, or XLA would undo it.
    patch_last = patch > features
    if patch_last:
        matrix = kernel.transpose(3, 0, 1, 2).reshape(features, patch)
        matrix = jnp.pad(matrix, ((0, 0), (0, spare)))
    else:
        matrix = jnp.pad(kernel.reshape(patch, features), ((0, spare), (0, 0)))

    def convolve(x: Array) -> Array:
        padded = _padded(x, pads)
        if sh == 1:  # Cuts each column once, for all rows of the window.
            columns = _beside(_shifts(padded, 2, width, sw, ow))
            parts = _shifts(columns, 1, height, 1, oh)
        else:  # Cuts both axes in one slice: its transpose is a single padding.
            examples, bottom, right = padded.shape[0], (oh - 1) * sh + 1, (ow - 1) * sw + 1
            parts = [
                lax.slice(
                    padded,
                    (0, i, j, 0),
                    (examples, i + bottom, j + right, channels),
                    (1, sh, sw, 1),
                )
                for i in range(height)
                for j in range(width)
            ]
        if spare:
            parts.append(jnp.zeros((*parts[0].shape[:-1], spare), padded.dtype))
        # Two plain matrices: a contraction of several axes would copy more in the gradient.
        patches = lax.collapse(_beside(parts), 0, 3)
        y = _product(patches, matrix, 1 if patch_last else 0)
        return y.reshape(-1, oh, ow, features)

    return convolve, math.prod(out) * patch


def by_row_sums(
    kernel: Array, strides: tuple[int, int], pads: Pads, out: Sequence[int]
) -> tuple[Convolve, int]:
    """Multiplies patches one row high with every row of the kernel, and sums over the rows."""
    if strides[0] != 1:
        raise ValueError(
            f'conv: method "row_sums" needs a vertical stride of 1, got strides {strides}; use '
            'method="patches".'
        )
    height, width, channels, features = kernel.shape
    matrix = kernel.transpose(1, 2, 0, 3).reshape(width * channels, height * features)

    def convolve(x: Array) -> Array:
        patches = _beside(_shifts(_padded(x, pads), 2, width, strides[1], out[1]))
        products = _product(lax.collapse(patches, 0, 3), matrix, 0)
        return _sum_over_rows(products.reshape(*patches.shape[:3], height * features), height)

    rows = out[0] + height - 1
    return convolve, rows * out[1] * (width * channels + height * features)


def natively(
    kernel: Array, strides: tuple[int, int], pads: Pads, out: Sequence[int]
) -> tuple[Convolve, int]:
    """Calls XLA's own convolution, which writes no intermediate numbers."""
    del out

    def convolve(x: Array) -> Array:
        return lax.conv_general_dilated(
            x, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    return convolve, 0


METHODS = {"patches": by_patches, "row_sums": by_row_sums, "native": natively}


def _padded(x: Array, pads: Pads) -> Array:
    margins = [(0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), margins)


def _shifts(x: Array, axis: int, window: int, stride: int, out: int) -> list[Array]:
    """One slice of `x` for every position in a window along `axis`, each of `out` entries."""
    end = (out - 1) * stride + 1
    return [lax.slice_in_dim(x, i, i + end, stride, axis) for i in range(window)]


def _beside(arrays: Sequence[Array]) -> Array:
    return jnp.concatenate(arrays, axis=-1)


def _product(patches: Array, matrix: Array, axis: int) -> Array:
    """Sums over the last axis of `patches` and `axis` of `matrix`, floats at least in float32."""
    inexact = jnp.issubdtype(patches.dtype, jnp.inexact)
    wide = jnp.promote_types(patches.dtype, jnp.float32) if inexact else patches.dtype
    contracted = (((1,), (axis,)), ((), ()))
    return lax.dot_general(patches, matrix, contracted, preferred_element_type=wide)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _sum_over_rows(products: Array, height: int) -> Array:
    """Sums the products of `height` kernel rows, those of row i moved up by i.

    Args:
      products: `[examples, rows, width, height * features]`.
      height: rows of the kernel.

    Returns:
      `[examples, rows - height + 1, width, features]`.
    """
    out = products.shape[1] - height + 1
    parts = jnp.split(products, height, axis=-1)
    moved = [lax.slice_in_dim(part, i, i + out, axis=1) for i, part in enumerate(parts)]
    return functools.reduce(jnp.add, moved)


@_sum_over_rows.defjvp
def _sum_over_rows_jvp(height: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (products,), (tangent,) = primals, tangents
    # The same sum by padding and one crop. Its transpose pads once and slices the result. The
    # transpose of slices would be several paddings, and XLA computes the operand anew in each.
    last, parts = height - 1, jnp.split(tangent, height, axis=-1)
    moved = [jnp.pad(x, ((0, 0), (last - i, i), (0, 0), (0, 0))) for i, x in enumerate(parts)]
    cropped = functools.reduce(jnp.add, moved)[:, last : products.shape[1]]
    return _sum_over_rows(products, height), cropped
