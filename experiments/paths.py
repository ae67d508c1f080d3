"""Predicates on parameter paths; to be replaced by metajax.nn's."""

from __future__ import annotations

from typing import Any

import jax


def is_head(path: tuple[Any, ...]) -> bool:
    return "['head']" in jax.tree_util.keystr(path)


def is_norm(path: tuple[Any, ...]) -> bool:
    return "['BatchNorm" in jax.tree_util.keystr(path)


def is_step(path: tuple[Any, ...]) -> bool:
    return jax.tree_util.keystr(path).endswith("['step']")
