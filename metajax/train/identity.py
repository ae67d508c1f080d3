"""Identifies a run without a configuration by its programs and its arrays."""

from __future__ import annotations

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from metajax.base import PyTree
from metajax.train.writers import named


def digest(*parts: PyTree) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of texts and of the leaves of trees.

    The text of a lowered program includes its constants, such as learning rates. It includes no
    addresses, so it is the same in every process.

    Example:

    >>> import jax, jax.numpy as jnp
    >>> one, other = (jax.jit(lambda x: rate * x).lower(1.0).as_text() for rate in (0.1, 0.2))
    >>> digest(one, {"w": jnp.zeros(2)}) == digest(one, {"w": jnp.zeros(2)})
    True
    >>> digest(one, {"w": jnp.zeros(2)}) == digest(other, {"w": jnp.zeros(2)})
    False
    """
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            sha.update(_sized(part))
            continue
        for name, leaf in named(part).items():
            sha.update(_sized(f"{name} {jnp.result_type(leaf)} {jnp.shape(leaf)}"))
            if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
                leaf = jax.random.key_data(leaf)
            sha.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return sha.hexdigest()[:16]


def _sized(text: str) -> bytes:
    """Encodes a text with its length, so that ("ab", "c") differs from ("a", "bc")."""
    encoded = text.encode()
    return len(encoded).to_bytes(8) + encoded
