"""Reinforcement learning on the forking tokens of a reasoning model, on megatron-core.

The rooms of this package fetch what stands in them when it is asked for. A recipe is checked before anything is computed, and
most of a room needs torch and Megatron, whose import takes seconds. So the `__init__` of such a room lists what it exports for
type checkers alone, and `opened` finds each name's module in that list.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# As ruff writes them. Not by `ast`, whose parser may fail in CPython 3.11 where two threads use it at a time.
_IMPORTS = re.compile(r"^    from (?P<module>\S+) import (?:\((?P<lines>[^)]*)\)|(?P<line>.+))$", re.MULTILINE)


def opened(room: str, file: str, *, former: Mapping[str, str] | None = None) -> Callable[[str], Any]:
    """The `__getattr__` of a room whose `__init__` is `file`; its imports stand under `if TYPE_CHECKING`.

    `former`: names that were exported once, with those of today, for programs that were written then.
    """
    listed = Path(file).read_text(encoding="utf-8").partition("\nif TYPE_CHECKING:\n")[2].partition("\nelse:\n")[0]
    module_of = {
        name.strip(): found["module"]
        for found in _IMPORTS.finditer(listed)
        for name in (found["lines"] or found["line"]).split(",")
        if name.strip()
    }

    def fetch(name: str) -> Any:
        if name in (former or {}):
            return getattr(sys.modules[room], (former or {})[name])
        if name not in module_of:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        found = vars(importlib.import_module(module_of[name]))
        # All that the module gives: one name may be the module's own, under which the import has left the module.
        for each, module in module_of.items():
            if module == module_of[name]:
                setattr(sys.modules[room], each, found[each])
        return found[name]

    return fetch


from megatron_fork.distributed.fused_kernels import watch_for_megatron  # noqa: E402 - a room needs `opened`

watch_for_megatron()
