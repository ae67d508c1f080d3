"""Losses of models, on batches of inputs, targets and, for padded examples, a mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metajax.base import Array, Aux, Batch, Key, LossFn, Params, check_function

Apply = Callable[..., Any]


def unpack(batch: Batch) -> tuple[Array, Array, Array | None]:
    """The inputs, the targets and the mask of a batch.

    Args:
      batch: `(x, y)`, `(x, y, mask)` or a dict of `"x"`, `"y"` and, for padded examples, `"mask"`.
        The mask is boolean `[examples]` and false for padding.

    Raises:
      ValueError: for any other batch.
    """
    if isinstance(batch, dict) and {"x", "y"} <= batch.keys() <= {"x", "y", "mask"}:
        batch = tuple(batch[name] for name in ("x", "y", "mask") if name in batch)
    if isinstance(batch, tuple | list) and len(batch) in (2, 3):
        x, y, mask = (*batch, None)[:3]
        mask = mask if mask is None else jnp.asarray(mask)
        if mask is not None and (mask.dtype != bool or mask.shape != jnp.shape(y)[:1]):
            raise ValueError(
                f"the mask of a batch must be booleans [examples], here [{len(y)}], got "
                f"{mask.dtype}{list(mask.shape)}."
            )
        return x, y, mask
    found = f"a dict of {sorted(batch)}" if isinstance(batch, dict) else type(batch).__name__
    raise ValueError(
        f'a batch must be (x, y), (x, y, mask) or a dict of "x", "y" and "mask", got {found}.'
    )


def without_padding(mask: Array | None, *arrays: Any) -> tuple[Any, ...]:
    """Trees of `[examples, ...]` with zeros for padding, which may hold anything, also NaN."""
    if mask is None:
        return arrays

    def cleared(x: Array) -> Array:
        x = jnp.asarray(x)
        return jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros_like(x))

    return jax.tree.map(cleared, arrays)


def masked_mean(values: Array, mask: Array | None) -> Array:
    """The mean over all `[examples, ...]` or, with a mask, over the examples where it is true."""
    if mask is None:
        return jnp.mean(values)
    per_example = jnp.mean(values.reshape(len(values), -1), axis=1)
    return jnp.sum(jnp.where(mask, per_example, 0)) / jnp.maximum(jnp.sum(mask), 1)


def cross_entropy(apply: Apply) -> LossFn:
    r"""The mean cross-entropy (in nats) of class numbers, with `accuracy` as a metric.

    .. math:: -\frac{1}{n} \sum_i \log \mathrm{softmax}(f_\theta(x_i))_{y_i}

    Args:
      apply: the model, `(params, x [examples, ...]) -> logits [examples, ways]`.

    Returns:
      A loss on batches `(x, y)`, `(x, y, mask)` or dicts of `"x"`, `"y"` and `"mask"`, with integer
      labels `y` `[examples]` and a boolean mask `[examples]`. Examples where the mask is false are
      padding and do not count; a label that is no class, such as -1, makes the loss NaN. A batch
      normalization does not know the mask unless the model passes it on.

    Raises:
      ValueError: if `apply` is not a function of two arguments; when traced, for another form of
        batch or for labels that are not class numbers `[examples]`.

    Example:

    >>> import jax, jax.numpy as jnp, metajax
    >>> loss = metajax.cross_entropy(lambda params, x: x @ params)
    >>> batch = {"x": jnp.eye(3), "y": jnp.asarray([0, 1, 0]), "mask": jnp.asarray([1, 1, 0]) > 0}
    >>> value, metrics = loss(9 * jnp.eye(3), batch, jax.random.key(0))
    >>> float(metrics["accuracy"])
    1.0
    """
    check_function("cross_entropy: apply", apply, "params, x")

    def loss(params: Params, batch: Batch, rng: Key) -> tuple[Array, Aux]:
        x, labels, mask = unpack(batch)
        check_size("cross_entropy", labels)
        x, labels = without_padding(mask, x, labels)
        logits = apply(params, x)
        check_labels("cross_entropy", logits, labels)
        # A negative label would be counted from the last class; any other without a class is NaN.
        labels = jnp.asarray(labels, int)  # int8 holds no more than 127 classes
        known = jnp.where(labels < 0, logits.shape[-1], labels)
        values = optax.softmax_cross_entropy_with_integer_labels(logits, known)
        return masked_mean(values, mask), {"accuracy": masked_mean(hits(logits, labels), mask)}

    return loss


def squared_error(apply: Apply) -> LossFn:
    r"""The mean squared error over examples and output entries.

    .. math:: \frac{1}{n d} \sum_{i,j} (f_\theta(x_i)_j - y_{ij})^2

    Args:
      apply: the model, `(params, x [examples, ...]) -> predictions`, of the shape of `y`.

    Returns:
      A loss on batches in the forms that `cross_entropy` takes.

    Raises:
      ValueError: if `apply` is not a function of two arguments; when traced, for another form of
        batch or if predictions and `y` differ in shape.

    Example:

    >>> import jax, jax.numpy as jnp, metajax
    >>> loss = metajax.squared_error(lambda params, x: x @ params)
    >>> value, _ = loss(jnp.zeros(2), (jnp.ones((5, 2)), 3 * jnp.ones(5)), jax.random.key(0))
    >>> float(value)
    9.0
    """
    check_function("squared_error: apply", apply, "params, x")

    def loss(params: Params, batch: Batch, rng: Key) -> tuple[Array, Aux]:
        x, y, mask = unpack(batch)
        check_size("squared_error", y)
        x, y = without_padding(mask, x, y)
        predictions = apply(params, x)
        if jnp.shape(predictions) != jnp.shape(y):
            raise ValueError(
                f"the predictions have shape {jnp.shape(predictions)}, y has shape {jnp.shape(y)}: "
                "reshape one of them, because their difference would be broadcast."
            )
        return masked_mean((predictions - y) ** 2, mask), {}

    return loss


def hits(logits: Array, labels: Array) -> Array:
    """1 where the highest logit is the label, `[examples]`."""
    return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)


def check_labels(name: str, logits: Array, labels: Array) -> None:
    """Raises `ValueError` unless the labels are class numbers `[examples]`."""
    if jnp.ndim(logits) != 2 or jnp.shape(labels) != logits.shape[:1]:
        raise ValueError(
            f"{name}: logits of shape {jnp.shape(logits)} and labels of shape "
            f"{jnp.shape(labels)} must be [examples, ways] and [examples]. One-hot labels "
            "become class numbers with jnp.argmax(labels, axis=-1)."
        )
    if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise ValueError(
            f"{name}: labels must be integers, the numbers of classes, got "
            f"{jnp.result_type(labels)}: labels.astype(int)."
        )


def check_size(name: str, y: Array) -> None:
    """Raises `ValueError` for a batch without examples, whose mean is not a number."""
    if 0 in jnp.shape(y)[:1]:
        raise ValueError(f"{name}: the batch has no examples.")
