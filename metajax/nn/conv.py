"""Convolution as a matrix product, so that every task can have a kernel of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp

from metajax.base import Array

Padding = str | Sequence[tuple[int, int]]


def conv(
    x: Array, kernel: Array, *, strides: tuple[int, int] = (1, 1), padding: Padding = "SAME"
) -> Array:
    r"""Two-dimensional convolution, channels last, equal to `jax.lax.conv_general_dilated`.

    .. math:: y_{nhwo} = \sum_{ijc} x_{n,\, hs+i,\, ws+j,\, c} \; k_{ijco}

    The patches of `x` are cut out by slices and multiplied with the kernel as one matrix. Where
    `jax.vmap` runs over kernels, as over tasks whose weights have adapted, that stays a batched
    matrix product; `lax.conv_general_dilated` would become a grouped convolution, which XLA runs
    two orders of magnitude slower on a CPU. It is made of linear operations that JAX can
    differentiate to any order, forward and backward.

    Args:
      x: `[examples, height, width, in_channels]`.
      kernel: `[kernel_height, kernel_width, in_channels, out_channels]`.
      strides: step of the window, `(height, width)`.
      padding: `"SAME"`, `"VALID"` or `((top, bottom), (left, right))`.

    Returns:
      `[examples, out_height, out_width, out_channels]`.

    Raises:
      ValueError: if ranks or channels do not match, the padding is unknown, or the padded image
        is smaller than the kernel.

    Example:

    >>> import jax.numpy as jnp
    >>> from metajax.nn import conv
    >>> conv(jnp.ones((2, 28, 28, 1)), jnp.ones((3, 3, 1, 64)), strides=(2, 2)).shape
    (2, 14, 14, 64)
    """
    _check(x, kernel)
    examples, *size, channels = x.shape
    window = kernel.shape[:2]
    pads = _pads(size, window, strides, padding)
    out = [
        (n + before + after - k) // s + 1
        for n, (before, after), k, s in zip(size, pads, window, strides, strict=True)
    ]
    if min(out) < 1:
        raise ValueError(
            f"conv: a kernel of {window[0]} x {window[1]} does not fit images of "
            f'{size[0]} x {size[1]} with padding {padding!r}; use padding="SAME" or fewer layers.'
        )
    # Split every axis into (blocks, phase) with phase < stride: a window's pixels at a given
    # offset are then a plain slice, whose transpose is a plain pad, not a dilated one.
    blocks = [o + (k - 1) // s for o, k, s in zip(out, window, strides, strict=True)]
    ends = [
        b * s - n - before for b, s, n, (before, _) in zip(blocks, strides, size, pads, strict=True)
    ]
    cropped = x[:, : size[0] + min(ends[0], 0), : size[1] + min(ends[1], 0)]
    (top, _), (left, _) = pads
    padded = jnp.pad(cropped, ((0, 0), (top, max(ends[0], 0)), (left, max(ends[1], 0)), (0, 0)))
    (sh, sw), (bh, bw), (oh, ow) = strides, blocks, out
    phases = padded.reshape(examples, bh, sh, bw, sw, channels)
    patches = jnp.concatenate(
        [
            phases[:, i // sh : i // sh + oh, i % sh, j // sw : j // sw + ow, j % sw]
            for i in range(window[0])
            for j in range(window[1])
        ],
        axis=-1,
    )
    return patches @ kernel.reshape(math.prod(kernel.shape[:3]), kernel.shape[3])


def _pads(
    size: Sequence[int], window: Sequence[int], strides: Sequence[int], padding: Padding
) -> list[tuple[int, int]]:
    if padding == "VALID":
        return [(0, 0), (0, 0)]
    if padding == "SAME":
        totals = [
            max((-(-n // s) - 1) * s + k - n, 0)
            for n, k, s in zip(size, window, strides, strict=True)
        ]
        return [(total // 2, total - total // 2) for total in totals]
    if isinstance(padding, str) or len(padding) != 2:
        raise ValueError(
            'conv: padding must be "SAME", "VALID" or ((top, bottom), (left, right)), got '
            f"{padding!r}."
        )
    return [(int(before), int(after)) for before, after in padding]


def _check(x: Array, kernel: Array) -> None:
    if x.ndim != 4 or kernel.ndim != 4:
        raise ValueError(
            "conv: expected images [examples, height, width, channels] and a kernel [height, "
            f"width, in, out], got shapes {x.shape} and {kernel.shape}."
        )
    if x.shape[-1] != kernel.shape[2]:
        raise ValueError(
            f"conv: the images have {x.shape[-1]} channels, the kernel takes {kernel.shape[2]}."
        )
