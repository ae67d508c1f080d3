"""Deprecated: `metajax.data.audit`, `changed_classes` and `metajax.tasks.audit_episodes`."""

from __future__ import annotations

from typing import Any

from metajax.data import leaks
from metajax.data.images import Images
from metajax.tasks import deprecated
from metajax.tasks.leaks import audit_episodes as _audit_episodes


def _audit(splits: Any, **settings: Any) -> dict[str, Any]:
    return leaks.audit({part: Images(*pair) for part, pair in splits.items()}, **settings)


audit = deprecated.moved("metajax.tasks.audit.audit", "metajax.data.audit", _audit)
changed_classes = deprecated.moved(
    "metajax.tasks.audit.changed_classes", "metajax.data.changed_classes", leaks.changed_classes
)
audit_episodes = deprecated.moved(
    "metajax.tasks.audit.audit_episodes", "metajax.tasks.audit_episodes", _audit_episodes
)
