"""A recipe with what every field means: the docstrings that stand below the fields, as comments."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from megatron_fork.recipe.references import as_written
from megatron_fork.recipe.text import write_yaml

_WIDTH = 118


def described(config: Any) -> str:
    """YAML that is a recipe of the same settings, a comment above every field."""
    return "\n".join(_lines(config, "")) + "\n"


def meanings(cls: type) -> dict[str, str]:
    """What the docstring below each field of a class of settings says, and what it may be where that is a list."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(node, ast.ClassDef)
    hints, found = get_type_hints(cls), {}
    for field, below in zip(node.body, [*node.body[1:], None], strict=True):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        text = ""
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            text = " ".join(str(below.value.value).split())
        name = field.target.id
        choices = _choices(hints[name])
        if not set(choices) <= set(re.findall(r"\w+", text)):
            text = f"{text} One of {', '.join(choices)}.".strip()
        found[name] = text
    return found


def _choices(hint: Any) -> tuple[str, ...]:
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(choice for each in get_args(hint) if each is not NoneType for choice in _choices(each))


def _lines(settings: Any, indent: str) -> Iterator[str]:
    cls = type(settings)
    meaning_of = meanings(cls)
    for field in fields(cls):
        value = getattr(settings, field.name)
        meaning = meaning_of[field.name]
        if is_dataclass(value):
            meaning = meaning or " ".join((inspect.getdoc(type(value)) or "").split())
        for line in textwrap.wrap(meaning, _WIDTH - len(indent), break_long_words=False, break_on_hyphens=False):
            yield f"{indent}# {line}"
        if is_dataclass(value):
            yield f"{indent}{field.name}:"
            yield from _lines(value, indent + "  ")
        else:
            yield from (indent + line for line in write_yaml(as_written({field.name: value})).rstrip("\n").split("\n"))
