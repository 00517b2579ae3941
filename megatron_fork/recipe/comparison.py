"""Comparison of trees of settings, whose fields have dotted names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of a tree with its dotted name."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from flat(entry, f"{path}.{key}".lstrip("."))
    else:
        yield path, value


def different(old: Any, new: Any, path: str = "") -> list[str]:
    """Dotted names of the fields in which two trees differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = old.keys() | new.keys()
        return [name for key in names for name in different(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))]
    return [] if old == new else [path]


def letters(fields: dict[str, Any]) -> str:
    """A short hash of fields and their values."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]
