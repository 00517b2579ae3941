"""Settings in YAML or JSON, with what they extend and their references to each other."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from megatron_fork.errors import ConfigError
from megatron_fork.files import UTF8
from megatron_fork.planning.peers.values import Unresolved
from megatron_fork.recipe import one_line, plain, read_yaml

_REFERENCE = re.compile(r"\$\{([^${}]*)\}")
_MOST_BASES, _MOST_REFERENCES = 20, 50
_COMPUTED: dict[str, Callable[[list[Any]], Any]] = {"mul": math.prod, "add": sum, "max": max, "min": min}


def text_of(file: Path) -> str:
    """The file's text; raises `ConfigError` where it cannot be read."""
    try:
        return file.read_text(encoding=UTF8)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(
            f"{file} cannot be read: {reason}", hint="name a file of settings of the other trainer"
        ) from error


def document(file: Path, *, inherits: bool) -> tuple[dict[str, Any], list[str]]:
    """Values by dotted name, and remarks. `inherits`: `defaults` names files that this one extends."""
    remarks: list[str] = []
    tree = _tree(file, inherits, (), remarks)
    leaves = _leaves(tree, "")
    return {name: _settled(value, name, leaves, 0) for name, value in leaves.items()}, remarks


def _tree(file: Path, inherits: bool, above: tuple[Path, ...], remarks: list[str]) -> dict[str, Any]:
    try:
        tree = plain(read_yaml(text_of(file)))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        where = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        place = f" line {where.line + 1}" if where else ""
        raise ConfigError(
            f"{file}{place} is not readable YAML: {one_line(error)}", hint="check its indentation"
        ) from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{file} holds no mapping of settings", hint="name the file that the other trainer is given")
    bases = tree.get("defaults") if inherits else None
    names = [name for name in (bases if isinstance(bases, list) else [bases]) if isinstance(name, str)]
    if not names or (isinstance(bases, list) and len(names) < len(bases)):
        return tree
    del tree["defaults"]
    merged: dict[str, Any] = {}
    for name in names:
        base = file.parent / name
        if base.resolve() in (*above, file.resolve()) or len(above) > _MOST_BASES:
            raise ConfigError(f"{file} extends itself through `defaults`", hint="remove one of these lines")
        if base.is_file():
            merged = _merged(merged, _tree(base, inherits, (*above, file.resolve()), remarks))
        else:
            remarks.append(f"defaults: {name} is not there, so what it sets is not known here")
    return _merged(merged, tree)


def _merged(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return merged


def _leaves(tree: dict[str, Any], path: str) -> dict[str, Any]:
    """Every value by its dotted name; a mapping without entries is a value."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{path}.{key}" if path else key
        inner = _leaves(value, name) if isinstance(value, dict) and value else {name: value}
        if twice := found.keys() & inner.keys():
            raise ConfigError(f"{min(twice)} is given twice", hint="keep one of the two lines")
        found |= inner
    return found


def _settled(value: Any, name: str, leaves: dict[str, Any], depth: int) -> Any:
    """The value with its references replaced; `Unresolved` where one leads nowhere."""
    if not isinstance(value, str) or "${" not in value:
        return value
    text = value
    for _ in range(_MOST_REFERENCES):
        found = _REFERENCE.search(text)
        if not found:
            return Unresolved(value) if "${" in text else text
        referred = _referred(found[1], name, leaves, depth) if depth < _MOST_REFERENCES else Unresolved(value)
        if isinstance(referred, Unresolved):
            return Unresolved(value)
        if found.span() == (0, len(text)):
            return referred
        text = f"{text[: found.start()]}{'null' if referred is None else referred}{text[found.end() :]}"
    return Unresolved(value)


def _referred(reference: str, name: str, leaves: dict[str, Any], depth: int) -> Any:
    function, colon, rest = reference.partition(":")
    parts = [part.strip() for part in rest.split(",")]
    if not colon:
        return _looked_up(reference.strip(), name, leaves, depth)
    if function == "oc.select":
        found = _looked_up(parts[0], name, leaves, depth)
        return plain(read_yaml(",".join(parts[1:]))) if isinstance(found, Unresolved) and len(parts) > 1 else found
    if function in _COMPUTED:
        try:
            return _COMPUTED[function](
                [float(part) if "." in part or "e" in part.lower() else int(part) for part in parts]
            )
        except (ValueError, OverflowError):
            return Unresolved(reference)
    return Unresolved(reference)


def _looked_up(path: str, name: str, leaves: dict[str, Any], depth: int) -> Any:
    dots = len(path) - len(path.lstrip("."))
    absolute = path.lstrip(".")
    if dots:
        absolute = ".".join([*name.split(".")[:-dots], absolute])
    if absolute not in leaves:
        return Unresolved(path)
    return _settled(leaves[absolute], absolute, leaves, depth + 1)
