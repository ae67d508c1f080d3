"""Losses of models, and what their batches hold: inputs, targets and a mask of the examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from metajax.base import Array, Aux, Batch, Key, LossFn, Params, check_function

Apply = Callable[..., Any]


def unpack(batch: Batch) -> tuple[Array, Array, Array | None]:
    """The inputs, the targets and the mask of a batch.

    Args:
      batch: `(x, y)`, `(x, y, mask)` or a dict of `"x"`, `"y"` and, with padded examples, `"mask"`:
        booleans `[examples]`, false for padding.

    Raises:
      ValueError: for a batch of another form.
    """
    if isinstance(batch, dict) and {"x", "y"} <= batch.keys() <= {"x", "y", "mask"}:
        batch = tuple(batch[name] for name in ("x", "y", "mask") if name in batch)
    if isinstance(batch, tuple | list) and len(batch) in (2, 3):
        x, y, mask = (*batch, None)[:3]
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


def masked_mean(values: Array, mask: Array | None) -> Array:
    """The mean over examples `[examples, ...]`; with a mask, over those that it accepts."""
    if mask is None:
        return jnp.mean(values)
    per_example = jnp.mean(values.reshape(len(values), -1), axis=1)
    return jnp.sum(jnp.where(mask, per_example, 0)) / jnp.maximum(jnp.sum(mask), 1)


def cross_entropy(apply: Apply) -> LossFn:
    """The mean cross-entropy of class numbers, with the `accuracy` as a metric.

    Args:
      apply: `(params, x [examples, ...]) -> logits [examples, ways]`.

    Returns:
      A loss of batches as `unpack` takes them, with labels `[examples]`. Padded examples have no
      part in it; a batch normalization has to be given the mask itself.

    Raises:
      ValueError: when traced, unless the labels are class numbers `[examples]`.

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
        logits = apply(params, x)
        check_labels("cross_entropy", logits, labels)
        values = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return masked_mean(values, mask), {"accuracy": masked_mean(hits(logits, labels), mask)}

    return loss


def squared_error(apply: Apply) -> LossFn:
    """The mean squared error, over examples and their entries.

    Args:
      apply: `(params, x [examples, ...]) -> predictions`, of the shape of `y`.

    Returns:
      A loss of batches as `unpack` takes them.

    Raises:
      ValueError: when traced, if the predictions are of another shape.
    """
    check_function("squared_error: apply", apply, "params, x")

    def loss(params: Params, batch: Batch, rng: Key) -> tuple[Array, Aux]:
        x, y, mask = unpack(batch)
        predictions = apply(params, x)
        if jnp.shape(predictions) != jnp.shape(y):
            raise ValueError(
                f"the predictions have shape {jnp.shape(predictions)}, y has shape {jnp.shape(y)}: "
                "reshape one to the other, or they would be broadcast."
            )
        return masked_mean((predictions - y) ** 2, mask), {}

    return loss


def hits(logits: Array, labels: Array) -> Array:
    """1 where the highest logit is the label, `[examples]`."""
    return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)


def check_labels(name: str, logits: Array, labels: Array) -> None:
    """Raises `ValueError` unless the labels are class numbers."""
    if jnp.ndim(logits) != 2 or jnp.shape(labels) != logits.shape[:1]:
        raise ValueError(
            f"{name}: logits of shape {jnp.shape(logits)} and labels of shape "
            f"{jnp.shape(labels)} must be [examples, ways] and [examples]. One-hot labels "
            "become class numbers with jnp.argmax(labels, axis=-1)."
        )
