"""Convolution as a matrix product, so that every task can have its own kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from metajax import machine
from metajax.base import Array, PyTree, check_integer
from metajax.nn.products import METHODS, Pads

Padding = str | Sequence[tuple[int, int]]
Elementwise = Callable[[Array], Array]
PerExample = Callable[[Array], PyTree]
Method = Literal["patches", "row_sums", "native"]


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

    Three methods compute it. Each is differentiable to any order, in forward and reverse mode:

    - `"patches"` cuts the patches of `x` out by slices and multiplies them with the kernel as one
      matrix. Under a `jax.vmap` over kernels, as over tasks with adapted weights, that stays a
      batched matrix product.
    - `"row_sums"` cuts patches one row high, `[width, in_channels]`, and multiplies them with every
      row of the kernel. The sum over i in the equation comes last. This saves time where patches of
      many channels take longer to write than to multiply. It needs a vertical stride of 1.
    - `"native"` is `jax.lax.conv_general_dilated`. A `jax.vmap` over kernels makes it a grouped
      convolution, which XLA runs far slower on a CPU (the rows of plain `vmap` in
      `python -m benchmarks.meta_gradient`). On a TPU it moves less memory than patches do.

    The backend and the shapes choose the default method, see `default_method`. Products of
    low-precision arrays accumulate in float32, except with `"native"`, where XLA decides.

    Args:
      x: `[examples, height, width, in_channels]`.
      kernel: `[kernel_height, kernel_width, in_channels, out_channels]`.
      strides: vertical and horizontal step of the window.
      padding: `"SAME"`, `"VALID"` or `((top, bottom), (left, right))`.
      before: an elementwise function applied to `x` first, such as a normalization with its
        activation. If patches are made of a few examples at a time, its results are not stored:
        the backward pass computes them again.
      after: a function applied to the output, example by example, such as pooling. Its results,
        arrays `[examples, ...]`, are returned in place of the output, which is not stored either.
      method: `"patches"`, `"row_sums"` or `"native"`. Results differ by rounding only.
      example_chunk: number of examples whose patches are in memory at a time. The backward pass
        cuts them out again. By default all examples on a GPU or TPU; on a CPU as many as its cache
        holds, see `default_example_chunk`. Results differ by rounding only.

    Returns:
      `[examples, out_height, out_width, out_channels]`, in the promoted type of `x` and `kernel`,
      or the result of `after`.

    Raises:
      ValueError: if the ranks or channels of `x` and `kernel` do not match, if a stride or
        `example_chunk` is no positive integer, if the padding or method is unknown, if the kernel
        is larger than the padded image, if `"row_sums"` gets a vertical stride above 1, if `before`
        changes the shape, or if `after` drops the axis of examples.

    Example:

    >>> import functools
    >>> import jax.numpy as jnp
    >>> from metajax import nn
    >>> nn.conv(jnp.ones((2, 28, 28, 1)), jnp.ones((3, 3, 1, 64)), strides=(2, 2)).shape
    (2, 14, 14, 64)

    A network with XLA's own convolutions:

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
            f"conv: before must be elementwise and keep the shape {x.shape}, it returned {images}."
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
    return _in_chunks(product, x, check_integer("conv: example_chunk", example_chunk))


def default_method(
    kernel_shape: Sequence[int], strides: tuple[int, int], out: Sequence[int]
) -> Method:
    """The method of `conv` for a kernel, its strides and the height and width of the output.

    - On a CPU the method that writes fewer numbers. `"patches"` writes each number twice: first
      the columns, then the patches. `"row_sums"` writes patches of one row twice and each product
      once. It is chosen at a vertical stride of 1 and for at least `machine.CPU_MIN_ROWS` output
      rows only, because it also multiplies the rows in the margins.
      `python -m benchmarks.convolution` measures the methods.
    - On a TPU `"native"`, which by the compiler's count moves a fraction of the bytes and needs a
      fraction of the memory (`python -m benchmarks.deviceless`).
    - On a GPU `"patches"`: on an H200 a meta-gradient of Omniglot takes a third of the time that it
      takes with native convolutions (`python -m benchmarks.meta_gradient`).
    """
    height, width, channels, features = kernel_shape
    backend = jax.default_backend()
    if backend == "tpu":
        return "native"
    patch_numbers = 2 * height * width * channels
    row_sum_numbers = 2 * width * channels + height * features
    eligible = backend == "cpu" and strides[0] == 1 and out[0] >= machine.CPU_MIN_ROWS
    return "row_sums" if eligible and row_sum_numbers < patch_numbers else "patches"


def default_example_chunk(examples: int, bytes_per_example: int) -> int:
    """The number of examples whose patches `conv` multiplies at a time.

    All examples on a GPU or TPU, and on a CPU with a last-level cache so large that the patches
    stay in it until the backward pass. Otherwise as many examples as make
    `machine.CPU_PATCH_BYTES`, because patches that leave the cache take longer to write and read
    than to multiply. Somewhat fewer if that makes the chunks equal: a remainder is compiled apart,
    and its result is joined to the others by a copy.
    """
    stored = examples * bytes_per_example <= machine.CPU_CACHE_SHARE * machine.last_cache_bytes()
    if stored or jax.default_backend() != "cpu":
        return max(examples, 1)
    return machine.equal_chunk(examples, machine.CPU_PATCH_BYTES // max(bytes_per_example, 1))


def _in_chunks(fn: Callable[[Array], PyTree], x: Array, chunk: int) -> PyTree:
    """`fn(x)` for `chunk` examples at a time; two derivatives store `x` and nothing else."""
    examples = x.shape[0]
    if chunk >= examples:
        return fn(x)
    checkpoint = functools.partial(jax.checkpoint, prevent_cse=False)
    # One checkpoint for each derivative. The first derivative consumes its checkpoint: without the
    # second one, the derivative of an inner step's gradient would store the patches.
    fn = checkpoint(checkpoint(fn))
    split = examples // chunk * chunk
    y = lax.map(fn, x[:split].reshape(-1, chunk, *x.shape[1:]))
    y = jax.tree.map(lambda y: y.reshape(split, *y.shape[2:]), y)
    if split == examples:
        return y
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), y, fn(x[split:]))


def _finished(y: Array, after: PerExample | None) -> PyTree:
    result = after(y) if after else y
    for leaf in jax.tree.leaves(result):
        if jnp.shape(leaf)[:1] != y.shape[:1]:
            raise ValueError(
                f"conv: after must return arrays of {y.shape[0]} examples, it returned one of "
                f"shape {jnp.shape(leaf)}."
            )
    return result


def _out_size(
    size: Sequence[int],
    window: Sequence[int],
    strides: tuple[int, int],
    pads: Pads,
    padding: Padding,
) -> list[int]:
    out = [
        (n + low + high - k) // s + 1
        for n, (low, high), k, s in zip(size, pads, window, strides, strict=True)
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
    try:
        sides = np.asarray(padding)
    except ValueError:  # a ragged sequence
        sides = np.asarray(None)
    if (
        isinstance(padding, str)
        or sides.shape != (2, 2)
        or not np.issubdtype(sides.dtype, np.integer)
    ):
        raise ValueError(
            'conv: padding must be "SAME", "VALID" or integers ((top, bottom), (left, right)), got '
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
    check_pair("conv: strides", strides)


def check_pair(what: str, pair: Any) -> None:
    """Raises `ValueError` unless `pair` is two positive integers, as for height and width."""
    if np.shape(pair) != (2,) or not all(isinstance(n, int | np.integer) and n > 0 for n in pair):
        raise ValueError(f"{what} must be two positive integers, such as (2, 2), got {pair!r}.")
