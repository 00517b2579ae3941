"""Rooms that fetch what stands in them when it is asked for.

A recipe is checked before anything is computed, and most of a room needs torch and Megatron, whose import takes seconds. So
the `__init__` of such a room lists what it exports for type checkers alone, and this finds each name's module in that list.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def opened(room: str, file: str) -> Callable[[str], Any]:
    """The `__getattr__` of a room whose `__init__` is `file`; its imports stand under `if TYPE_CHECKING`."""
    listed = next(node for node in ast.parse(Path(file).read_text(encoding="utf-8")).body if isinstance(node, ast.If))
    module_of = {
        alias.name: node.module
        for node in listed.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }

    def fetch(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        value = vars(importlib.import_module(module_of[name]))[name]
        setattr(sys.modules[room], name, value)
        return value

    return fetch
