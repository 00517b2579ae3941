"""A recipe with comments that give every field's meaning, range and unit."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from megatron_fork.recipe.field_types import limits_of
from megatron_fork.recipe.references import as_written
from megatron_fork.recipe.settings import meanings, types_of
from megatron_fork.recipe.text import write_yaml

_WIDTH = 118


def described(config: Any) -> str:
    """A recipe of the same settings as YAML, with a comment above every field."""
    return "\n".join(_lines(config, "")) + "\n"


def _lines(settings: Any, indent: str) -> Iterator[str]:
    cls: Any = type(settings)
    meaning_of = meanings(cls)
    for field in fields(cls):
        value = getattr(settings, field.name)
        limits = limits_of(types_of(cls)[field.name])
        meaning = meaning_of[field.name] + (f" ({limits})" if limits else "")
        if is_dataclass(value):
            meaning = meaning or " ".join((inspect.getdoc(type(value)) or "").split())
        for line in textwrap.wrap(meaning, _WIDTH - len(indent), break_long_words=False, break_on_hyphens=False):
            yield f"{indent}# {line}"
        if is_dataclass(value):
            yield f"{indent}{field.name}:"
            yield from _lines(value, indent + "  ")
        else:
            yield from (indent + line for line in write_yaml(as_written({field.name: value})).rstrip("\n").split("\n"))
