"""What every field means: the docstrings that stand below the fields, for `--print-config`, the documentation, and errors."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from megatron_fork.settings.types import choices_of


@functools.cache
def types_of(cls: Any) -> dict[str, Any]:
    """The type of every field of a class, with its range and unit; empty for what is no class of fields."""
    return get_type_hints(cls, include_extras=True) if is_dataclass(cls) else {}


def leaves(cls: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted name and the type of every field that is no room of fields itself."""
    for entry in fields(cls):
        hint, dotted = types_of(cls)[entry.name], f"{path}{entry.name}"
        if is_dataclass(hint):
            yield from leaves(hint, f"{dotted}.")
        else:
            yield dotted, hint


@functools.cache
def meanings(cls: Any) -> dict[str, str]:
    """What the docstring below each field of a class of settings says, and what it may be where that is a list."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(node, ast.ClassDef)
    found = {}
    for field, below in zip(node.body, [*node.body[1:], None], strict=True):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        text = ""
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            text = " ".join(str(below.value.value).split())
        name = field.target.id
        choices = choices_of(types_of(cls)[name])
        if not set(choices) <= set(re.findall(r"\w+", text)):
            text = f"{text} One of {', '.join(choices)}.".strip()
        found[name] = text
    return found
