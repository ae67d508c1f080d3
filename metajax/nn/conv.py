"""Convolution as a matrix product, so that every task can have a kernel of its own."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from metajax.base import Array, PyTree, check_integer, equal_chunk

Padding = str | Sequence[tuple[int, int]]
Elementwise = Callable[[Array], Array]
PerExample = Callable[[Array], PyTree]
Convolve = Callable[[Array], Array]
Pads = Sequence[tuple[int, int]]
Method = Literal["patches", "row_sums", "native"]


# On a CPU patches of so many bytes are multiplied at a time, which the caches of a core hold; all
# are kept for the backward pass where they make no more than this share of its last cache, which
# has to hold the rest of an update, too. Chosen by races of whole updates; for a layer alone, as in
# `python -m benchmarks.convolution`, another choice may be faster.
CPU_PATCH_BYTES = 2 * 1024 * 1024
CPU_KEPT_SHARE = 1 / 32
# Outputs of fewer rows are not worth summing over those of the kernel last.
CPU_ROWS = 8


def conv(
    x: Array,
    kernel: Array,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "SAME",
    before: Elementwise | None = None,
    after: PerExample | None = None,
    method: Method | None = None,
    example_chunk: int | None = None,
) -> Any:
    r"""Two-dimensional convolution, channels last, equal to `jax.lax.conv_general_dilated`.

    .. math:: y_{nhwo} = \sum_{ijc} x_{n,\, hs+i,\, ws+j,\, c} \; k_{ijco}

    Three methods compute it, each differentiable to any order, forward and backward:

    - `"patches"`: the patches of `x` are cut out by slices, of as many examples as `example_chunk`
      says at a time, and multiplied with the kernel as one matrix. Where `jax.vmap` runs over
      kernels, as over tasks whose weights have adapted, that stays a batched matrix product.
    - `"row_sums"`: the same with patches one row high, `[width, in_channels]`, whose products with
      all rows of the kernel are summed over rows afterwards: the sum over i in the equation comes
      last. Patches of many channels cost more to write than to multiply. For a vertical stride
      of 1.
    - `"native"`: `jax.lax.conv_general_dilated`, which `vmap` over kernels makes a grouped
      convolution. XLA runs that far slower on a CPU (the rows of plain `vmap` in
      `python -m benchmarks.meta_gradient`); on a TPU patches are what costs.

    By default backend and shapes choose the method, see `default_method`.
    Products of low-precision arrays accumulate in float32, those of `"native"` as XLA sees fit.

    Args:
      x: `[examples, height, width, in_channels]`.
      kernel: `[kernel_height, kernel_width, in_channels, out_channels]`.
      strides: step of the window, `(height, width)`.
      padding: `"SAME"`, `"VALID"` or `((top, bottom), (left, right))`.
      before: an elementwise function of the images that comes first, such as a normalization and
        its activation. With patches of few examples at a time its results are not kept in memory
        but computed again in the backward pass.
      after: a function of the output, of each example apart, such as pooling. What it returns,
        arrays `[examples, ...]`, is returned instead; the output itself is not kept either.
      method: how it is computed. It changes no number beyond rounding.
      example_chunk: examples whose patches are in memory at a time; those of the backward pass are
        then cut out again instead of kept. By default a GPU or TPU takes all at once, and so does
        a CPU whose last cache is large; else as many as make `CPU_PATCH_BYTES`, see
        `default_example_chunk`. It changes no number beyond rounding.

    Returns:
      `[examples, out_height, out_width, out_channels]`, in the type `x` and `kernel` promote to, or
      what `after` makes of it.

    Raises:
      ValueError: if ranks or channels do not match, a stride or `example_chunk` is not positive,
        the padding or the method is unknown, the padded image is smaller than the kernel,
        `"row_sums"` is asked for at another vertical stride than 1, `before` changes the shape of
        the images, or `after` loses the axis of the examples.

    Example:

    >>> import functools
    >>> import jax.numpy as jnp
    >>> from metajax import nn
    >>> nn.conv(jnp.ones((2, 28, 28, 1)), jnp.ones((3, 3, 1, 64)), strides=(2, 2)).shape
    (2, 14, 14, 64)

    A network whose convolutions are those of XLA:

    >>> native = functools.partial(nn.conv, method="native")
    >>> model = nn.ConvNet(5, convolution=native)
    """
    _check(x, kernel, strides)
    examples, *size, _ = x.shape
    window = kernel.shape[:2]
    pads = _pads(size, window, strides, padding)
    out = _out_size(size, window, strides, pads, padding)
    images = jax.eval_shape(before or (lambda x: x), x)
    if getattr(images, "shape", None) != x.shape:
        raise ValueError(
            f"conv: before must be elementwise, it makes {images} of images of shape {x.shape}."
        )
    dtype = jnp.result_type(images, kernel)
    if method is None:
        method = default_method(kernel.shape, strides, out)
    elif method not in METHODS:
        raise ValueError(f"conv: method must be one of {', '.join(METHODS)}, got {method!r}.")
    convolve, numbers = METHODS[method](kernel.astype(dtype), strides, pads, out)

    def product(x: Array) -> PyTree:
        y = convolve((before(x) if before else x).astype(dtype))
        return _finished(y.astype(dtype), after)

    if example_chunk is None:
        example_chunk = default_example_chunk(examples, numbers * dtype.itemsize)
    return _in_chunks(product, x, check_integer("example_chunk", example_chunk))


def _finished(y: Array, after: PerExample | None) -> PyTree:
    result = after(y) if after else y
    for leaf in jax.tree.leaves(result):
        if leaf.shape[:1] != y.shape[:1]:
            raise ValueError(
                f"conv: after must return arrays of {y.shape[0]} examples, it returned one of "
                f"shape {leaf.shape}."
            )
    return result


def default_method(
    kernel_shape: Sequence[int], strides: tuple[int, int], out: Sequence[int]
) -> Method:
    """The method of `conv` where it is not told.

    On a CPU `"row_sums"` at a vertical stride of 1 where fewer numbers are written, else
    `"patches"`: of a patch each number is written twice, cut out and put beside the others, of a
    product once. Images of few rows spend too many products on their margins. Read off
    `python -m benchmarks.convolution`.

    On a TPU `"native"`: as its compiler counts them, those programs move a fraction of the bytes
    and need a fraction of the memory (`python -m benchmarks.deviceless`). On a GPU `"patches"`,
    which neither that count nor a clock has decided.
    """
    height, width, channels, features = kernel_shape
    backend = jax.default_backend()
    if backend == "tpu":
        return "native"
    of_patches = 2 * height * width * channels
    of_row_sums = 2 * width * channels + height * features
    measured = backend == "cpu" and strides[0] == 1 and out[0] >= CPU_ROWS
    return "row_sums" if measured and of_row_sums < of_patches else "patches"


def default_example_chunk(examples: int, bytes_per_example: int) -> int:
    """The examples whose patches are multiplied at a time where `conv` is not told.

    All of them on an accelerator, and on a CPU whose last cache holds the patches from the forward
    to the backward pass. Otherwise as many as make `CPU_PATCH_BYTES`, because larger patches than a
    cache holds cost more to write and read than to multiply; somewhat fewer where that makes equal
    chunks, because a rest is computed apart and all results are copied together.
    """
    kept = examples * bytes_per_example <= CPU_KEPT_SHARE * _last_cache_bytes()
    if kept or jax.default_backend() != "cpu":
        return max(examples, 1)
    return equal_chunk(examples, CPU_PATCH_BYTES // max(bytes_per_example, 1))


@functools.cache
def _last_cache_bytes(path: str = "/sys/devices/system/cpu/cpu0/cache/index3/size") -> int:
    """Of the third level; 0 where the system does not say."""
    try:
        kibibytes = Path(path).read_text().strip().removesuffix("K")
    except OSError:
        return 0
    return 1024 * int(kibibytes) if kibibytes.isdecimal() else 0


def _in_chunks(fn: Callable[[Array], PyTree], x: Array, chunk: int) -> PyTree:
    """`fn(x)`, of so many examples at a time; nothing else than `x` is kept for two derivatives."""
    examples = x.shape[0]
    if chunk >= examples:
        return fn(x)
    checkpoint = functools.partial(jax.checkpoint, prevent_cse=False)
    # Once for each derivative: what the first keeps nothing of is an ordinary function again where
    # that gradient is differentiated, as every inner step's is.
    fn = checkpoint(checkpoint(fn))
    split = examples // chunk * chunk
    y = lax.map(fn, x[:split].reshape(-1, chunk, *x.shape[1:]))
    y = jax.tree.map(lambda y: y.reshape(split, *y.shape[2:]), y)
    if split == examples:
        return y
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), y, fn(x[split:]))


def _by_patches(
    kernel: Array, strides: tuple[int, int], pads: Pads, out: Sequence[int]
) -> tuple[Convolve, int]:
    """What the window sees at every output, times the kernel.

    Returns:
      The convolution of images and how many numbers it writes on the way for each example.
    """
    (sh, sw), (oh, ow) = strides, out
    height, width, channels, features = kernel.shape
    patch = height * width * channels
    # XLA's product is slower on a CPU where the length that it sums over is no multiple of four.
    spare = -patch % 4
    # The longer of patch and output comes last: the product that is the gradient of the kernel runs
    # faster so on a CPU. One transposition of all four axes at once, or XLA would undo it.
    patch_last = patch > features
    if patch_last:
        matrix = kernel.transpose(3, 0, 1, 2).reshape(features, patch)
        matrix = jnp.pad(matrix, ((0, 0), (0, spare)))
    else:
        matrix = jnp.pad(kernel.reshape(patch, features), ((0, spare), (0, 0)))

    def convolve(x: Array) -> Array:
        padded = _padded(x, pads)
        if sh == 1:  # each column once for all rows
            columns = _beside(_along(padded, 2, width, sw, ow))
            seen = _along(columns, 1, height, 1, oh)
        else:  # in one slice, whose transpose is one padding
            examples, bottom, right = padded.shape[0], (oh - 1) * sh + 1, (ow - 1) * sw + 1
            seen = [
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
            seen.append(jnp.zeros((*seen[0].shape[:-1], spare), padded.dtype))
        patches = _beside(seen)
        # Two plain matrices: contracting several axes at once would copy more in the gradient.
        y = _product(lax.collapse(patches, 0, 3), matrix, 1 if patch_last else 0)
        return y.reshape(-1, oh, ow, features)

    return convolve, math.prod(out) * patch


def _by_row_sums(
    kernel: Array, strides: tuple[int, int], pads: Pads, out: Sequence[int]
) -> tuple[Convolve, int]:
    """The same from patches of one row: their products with every row of the kernel, summed."""
    if strides[0] != 1:
        raise ValueError(
            f'conv: method "row_sums" is for a vertical stride of 1, got strides {strides}.'
        )
    height, width, channels, features = kernel.shape
    matrix = kernel.transpose(1, 2, 0, 3).reshape(width * channels, height * features)

    def convolve(x: Array) -> Array:
        patches = _beside(_along(_padded(x, pads), 2, width, strides[1], out[1]))
        products = _product(lax.collapse(patches, 0, 3), matrix, 0)
        return _sum_over_rows(products.reshape(*patches.shape[:3], height * features), height)

    rows = out[0] + height - 1
    return convolve, rows * out[1] * (width * channels + height * features)


def _natively(
    kernel: Array, strides: tuple[int, int], pads: Pads, out: Sequence[int]
) -> tuple[Convolve, int]:
    """The same by XLA's own convolution, which writes nothing on the way."""

    def convolve(x: Array) -> Array:
        return lax.conv_general_dilated(
            x, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    return convolve, 0


METHODS = {"patches": _by_patches, "row_sums": _by_row_sums, "native": _natively}


def _padded(x: Array, pads: Pads) -> Array:
    margins = [(0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), margins)


def _along(x: Array, axis: int, window: int, stride: int, out: int) -> list[Array]:
    """What each pixel of a window along one axis sees at every output."""
    end = (out - 1) * stride + 1
    return [lax.slice_in_dim(x, i, i + end, stride, axis) for i in range(window)]


def _beside(arrays: Sequence[Array]) -> Array:
    return jnp.concatenate(arrays, axis=-1)


def _product(patches: Array, matrix: Array, axis: int) -> Array:
    wide = jnp.promote_types(patches.dtype, jnp.float32)
    contracted = (((1,), (axis,)), ((), ()))
    return lax.dot_general(patches, matrix, contracted, preferred_element_type=wide)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _sum_over_rows(products: Array, height: int) -> Array:
    """`[examples, rows, width, height * features]`, of which the i-th features move up i rows."""
    out = products.shape[1] - height + 1
    parts = jnp.split(products, height, axis=-1)
    moved = [lax.slice_in_dim(part, i, i + out, axis=1) for i, part in enumerate(parts)]
    return functools.reduce(jnp.add, moved)


@_sum_over_rows.defjvp
def _sum_over_rows_jvp(height: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (products,), (tangent,) = primals, tangents
    # The same sum, but padded and then cropped, whose transpose pads once and slices that. Slices
    # would become paddings, in each of which XLA computes anew all that leads to what it pads.
    last, parts = height - 1, jnp.split(tangent, height, axis=-1)
    moved = [jnp.pad(x, ((0, 0), (last - i, i), (0, 0), (0, 0))) for i, x in enumerate(parts)]
    cropped = functools.reduce(jnp.add, moved)[:, last : products.shape[1]]
    return _sum_over_rows(products, height), cropped


def _out_size(
    size: Sequence[int],
    window: Sequence[int],
    strides: tuple[int, int],
    pads: Pads,
    padding: Padding,
) -> list[int]:
    out = [
        (n + before + after - k) // s + 1
        for n, (before, after), k, s in zip(size, pads, window, strides, strict=True)
    ]
    if min(out) < 1:
        raise ValueError(
            f"conv: a kernel of {window[0]} x {window[1]} does not fit images of "
            f'{size[0]} x {size[1]} with padding {padding!r}; use padding="SAME" or fewer layers.'
        )
    return out


def _pads(
    size: Sequence[int], window: Sequence[int], strides: Sequence[int], padding: Padding
) -> Pads:
    if padding in ("SAME", "VALID"):
        return lax.padtype_to_pads(size, window, strides, padding)
    if isinstance(padding, str) or np.shape(padding) != (2, 2):
        raise ValueError(
            'conv: padding must be "SAME", "VALID" or ((top, bottom), (left, right)), got '
            f"{padding!r}."
        )
    return padding


def _check(x: Array, kernel: Array, strides: tuple[int, int]) -> None:
    if x.ndim != 4 or kernel.ndim != 4:
        raise ValueError(
            "conv: expected images [examples, height, width, channels] and a kernel [height, "
            f"width, in, out], got shapes {x.shape} and {kernel.shape}."
        )
    if x.shape[-1] != kernel.shape[2]:
        raise ValueError(
            f"conv: the images have {x.shape[-1]} channels, the kernel takes {kernel.shape[2]}."
        )
    if np.shape(strides) != (2,) or min(strides) < 1:
        raise ValueError(f"conv: strides must be two positive integers, got {strides!r}.")
