"""The fields of a tree of settings, one by one."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from megatron_fork.recipe import types_of


def leaves(cls: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted name and the type of every field that is no room of fields itself."""
    for entry in fields(cls):
        hint, dotted = types_of(cls)[entry.name], f"{path}{entry.name}"
        if is_dataclass(hint):
            yield from leaves(hint, f"{dotted}.")
        else:
            yield dotted, hint
