"""From the text of a recipe or an override to the typed fields of settings: the field's type decides how a value is read.

A text field keeps the text as written, whatever YAML would make of it; a count takes decimal digits. A value of the wrong
type is passed on unchanged: the settings themselves refuse it, as they refuse one that is out of range.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin

import yaml

from megatron_fork.errors import ConfigError, shown
from megatron_fork.files import at_home
from megatron_fork.recipe.field_types import bare, is_path, without_none
from megatron_fork.recipe.references import Resolved
from megatron_fork.recipe.settings import types_of
from megatron_fork.recipe.text import Written, key_text, plain, read_yaml

_TRUE, _FALSE = ("true", "yes", "on", "y", "1"), ("false", "no", "off", "n", "0")
_DIGITS = re.compile(r"[-+]?\d[\d_]*")
_MOST_DIGITS = 100
_NONE = ("", "null")


@dataclass(frozen=True)
class FieldReader:
    """Reads the settings of one class from a tree of written values."""

    settings: type

    def read(self, tree: Mapping[str, Any]) -> Any:
        """Settings of the class; raises `ConfigError` for the first field that is unknown or has a wrong value."""
        self.check_known(tree)
        return _settings(tree, self.settings, "")

    def override(self, dotted: str, text: str) -> Any:
        """The value of an override's text: unchanged for a text field, otherwise what YAML reads."""
        hint = _hint_of(self.settings, dotted)
        (inner, _), (_, optional) = bare(hint), without_none(hint)
        if optional and text in _NONE:
            return Written(text, None)
        if inner is str or get_origin(inner) is Literal:
            return text
        is_texts = get_origin(inner) is list and get_args(inner)[0] is str
        if is_texts and not text.lstrip().startswith("["):
            return [text]
        try:
            return read_yaml(text)
        except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"{shown(dotted)}={shown(text)} cannot be read: {one_line(error)}", hint="quote its value"
            ) from error

    def check_known(self, tree: Mapping[Any, Any], cls: Any = None, path: str = "") -> None:
        """Raise `ConfigError` for an unknown field, with the closest known name as hint."""
        cls = cls or self.settings
        known = [entry.name for entry in fields(cls)]
        for key, value in tree.items():
            name = key_text(key)
            dotted = f"{path}{name}"
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f"did you mean {path}{near[0]}?" if near else f"known here: {', '.join(known)}"
                raise ConfigError(f"{shown(dotted)} is not a field", hint=hint)
            room: Any = types_of(cls)[name]
            if is_dataclass(room):
                if not isinstance(value, dict):
                    raise ConfigError(
                        f"{dotted}={shown(plain(value))} is not a mapping",
                        hint=f"set its fields, such as {dotted}.{fields(room)[0].name}",
                    )
                self.check_known(value, room, f"{dotted}.")


def one_line(error: Exception) -> str:
    """The first line of an error's message."""
    said = str(error).strip()
    # The first line of such an error only says what was being read.
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        said = error.problem
    reason = said.splitlines()[0] if said else type(error).__name__
    return reason if len(reason) <= 300 else reason[:300] + "..."


def _settings(tree: Mapping[str, Any], cls: Any, path: str) -> Any:
    values = {}
    for key, value in tree.items():
        name = key_text(key)
        hint = types_of(cls)[name]
        values[name] = _settings(value, hint, f"{path}{name}.") if is_dataclass(hint) else _value(value, hint)
    try:
        return cls(**values)
    except ConfigError as error:  # of a class that several rooms use
        if error.message.partition("=")[0] in types_of(cls) and path:
            raise ConfigError(f"{path}{error.message}", hint=error.hint) from error
        raise


def _value(value: Any, hint: Any) -> Any:
    """The value in its field's type; unchanged if it cannot have that type."""
    inner = bare(hint)[0]
    if isinstance(value, bool | int | float):  # from a preset, which is not written in YAML
        value = Written(str(value), value)
    if isinstance(value, list):
        kind = get_args(inner)[0] if get_origin(inner) is list else str
        return [_value(each.text if isinstance(each, Written) and kind is str else each, kind) for each in value]
    if isinstance(value, dict):
        return _anything(value)
    if plain(value) is None:
        return None
    text = value.text if isinstance(value, Written) else value
    if is_path(hint):
        place = at_home(text)
        return Resolved(place, text.written) if isinstance(text, Resolved) else place
    if inner is bool and text.lower() in _TRUE + _FALSE:
        return text.lower() in _TRUE
    if inner is int and len(text) <= _MOST_DIGITS:
        is_hexadecimal = type(plain(value)) is int  # or binary
        return int(text) if _DIGITS.fullmatch(text) else plain(value) if is_hexadecimal else text
    if inner is float:
        return _number(text)
    return text


def _anything(value: Any) -> Any:
    """The value of a free mapping as YAML reads it; a reference may also resolve to a number, true or false."""
    if isinstance(value, dict):
        return {key_text(key): _anything(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_anything(entry) for entry in value]
    if isinstance(value, Resolved):
        with contextlib.suppress(yaml.YAMLError, ValueError, TypeError, RecursionError):
            meant = plain(read_yaml(str(value)))
            return meant if isinstance(meant, bool | int | float) else value
    return plain(value)


def _number(text: str) -> float | str:
    try:
        return float(text.lower().replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        return text


def _hint_of(cls: type, dotted: str) -> Any:
    """The type of a field; None if no field has that name, or it is in a free mapping."""
    hint: Any = cls
    for part in dotted.split("."):
        hint = types_of(hint).get(part)
    return hint
