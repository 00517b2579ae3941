"""Write docs/config.md and docs/recipe.schema.json from the classes of settings; `tests/config` compares them.

python tools/config_reference.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from inspect import getdoc
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import TypeAdapter

from megatron_fork.config import RunConfig
from megatron_fork.recipe import (
    bare,
    choices_of,
    is_path,
    limits_of,
    may_be_custom,
    meanings,
    types_of,
    unit_of,
    without_none,
)

DOCS = Path(__file__).parent.parent / "docs"
HEAD = """# Every field of a recipe

Made by `python tools/config_reference.py` from the classes of settings; a test compares. `megatron-fork train RECIPE
--print-config` prints the same meanings above the values of a recipe.

A recipe is YAML; `base: other.yaml` extends another, a dotted override on the command line (`train.steps=10`) wins over
both. Any field may be a reference instead: `${oc.env:NAME}` to the environment, `${train.steps}` to another field.
`null` is allowed where the type says so. Numbers are finite, but where a range says `or infinite`.

[recipe.schema.json](recipe.schema.json) is the JSON schema of recipes. An editor with a YAML language server completes and
checks a recipe that begins with

    # yaml-language-server: $schema=../docs/recipe.schema.json

(a path relative to the recipe, or an address). The schema knows each field alone; `megatron-fork doctor RECIPE` also says
what does not go together.
"""
_KINDS = {bool: "true or false", int: "whole number", float: "number", str: "text", dict: "mapping"}
_REFERENCE = {"type": "string", "pattern": r"\$\{"}


def markdown() -> str:
    """The reference: a section a room, a row a field."""
    return HEAD + "".join(_section(RunConfig(), ""))


def schema() -> dict[str, Any]:
    """What a recipe may hold, for editors."""
    tree = _room(RunConfig())
    tree["properties"] = {
        "base": {"type": "string", "description": "A recipe that this one extends, relative to itself."},
        **tree["properties"],
    }
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Recipe of megatron-fork", **tree}


def _section(settings: Any, path: str) -> Iterator[str]:
    cls: Any = type(settings)
    values = {entry.name: getattr(settings, entry.name) for entry in fields(cls)}
    if path:
        yield f"\n## {path}\n\n{_text(getdoc(cls))}\n"
    if any(not is_dataclass(value) for value in values.values()):
        yield "\n| field | type | range | default | meaning |\n|---|---|---|---|---|\n"
    for name, value in values.items():
        if not is_dataclass(value):
            hint = types_of(cls)[name]
            cells = (f"`{path}{'.' if path else ''}{name}`", _kind(hint), limits_of(hint), f"`{_written(value)}`")
            yield f"| {' | '.join([*cells, _text(meanings(cls)[name]).replace('|', chr(92) + '|')])} |\n"
    for name, value in values.items():
        if is_dataclass(value):
            yield from _section(value, f"{path}.{name}".lstrip("."))


def _kind(hint: Any) -> str:
    inner, _ = bare(hint)
    kind = "path" if is_path(hint) else _KINDS.get(get_origin(inner) or inner, "")
    if choices := choices_of(hint):
        kind = ", ".join(f"`{each}`" for each in choices)
    if may_be_custom(hint):
        kind += " or `module:name`"
    if get_origin(inner) is list:
        (each,) = get_args(inner)
        kind = f"list of {_kind(each) if get_args(each) else _KINDS[each] + ('s' if each is not str else '')}"
    return kind + (" or `null`" if without_none(hint)[1] else "")


def _text(text: str | None) -> str:
    return " ".join((text or "").split())


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _leaf(found: dict[str, Any]) -> dict[str, Any]:
    """What pydantic says of a field, and the ways to write it that a recipe has beside: references, numbers as text."""
    options = [dict(each) for each in found.get("anyOf", [found])]
    for each in options:
        if "items" in each:
            each["items"] = _leaf(each["items"])
        if each == {"type": "string"}:
            each["type"] = ["string", "number", "boolean"]
    takes_text = any(each == {"type": ["string", "number", "boolean"]} for each in options)
    options += [] if takes_text else [_REFERENCE]
    return options[0] if len(options) == 1 else {"anyOf": options}


def main() -> None:
    (DOCS / "config.md").write_text(markdown(), encoding="utf-8")
    (DOCS / "recipe.schema.json").write_text(
        json.dumps(schema(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _room(settings: Any) -> dict[str, Any]:
    cls: Any = type(settings)
    properties = {}
    for entry in fields(cls):
        value = getattr(settings, entry.name)
        if is_dataclass(value):
            properties[entry.name] = _room(value)
        else:
            hint = types_of(cls)[entry.name]
            unit = f" In {unit_of(hint)}." if unit_of(hint) else ""
            described = {"description": meanings(cls)[entry.name] + unit, "default": value}
            properties[entry.name] = {**_leaf(TypeAdapter(hint).json_schema()), **described}
    return {
        "type": "object",
        "description": _text(getdoc(cls)),
        "properties": properties,
        "additionalProperties": False,
    }


if __name__ == "__main__":
    main()
