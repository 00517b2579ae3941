"""From what a recipe or an override has written to the typed fields of settings: each value as its field means it.

A field of text takes the text as it is, whatever YAML would make of it; a count takes decimal digits; a float must be finite.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from megatron_fork.errors import ConfigError
from megatron_fork.files import at_home, can_be_path
from megatron_fork.masking import masked
from megatron_fork.recipe.references import Resolved
from megatron_fork.recipe.text import Written, key_text, plain, read_yaml

Settings = TypeVar("Settings")
_TRUE, _FALSE = ("true", "yes", "on", "y", "1"), ("false", "no", "off", "n", "0")
_DIGITS = re.compile(r"[-+]?\d[\d_]*")
_NONE = ("", "null")
_SHOW = "`--print-config` shows every field with its meaning"


@dataclass(frozen=True)
class FieldReader:
    """Reads the settings of one class from a tree of what was written."""

    settings: type
    paths: frozenset[str]
    """Dotted names of the fields in which a leading `~` is the user's home."""
    may_be_infinite: frozenset[str]
    """Where infinity means something."""

    def read(self, tree: Mapping[str, Any]) -> Any:
        """Settings of the class; raises `ConfigError` for the first field that is unknown or not of its kind."""
        check_known(tree, self.settings, "")
        return self._settings(tree, self.settings, "")

    def override(self, dotted: str, text: str) -> Any:
        """What the text of an override stands for in its field; text for a field of text, else what YAML reads."""
        hint = _hint_of(self.settings, dotted)
        inner, optional = _without_none(hint)
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

    def _settings(self, tree: Mapping[str, Any], cls: type[Settings], path: str) -> Settings:
        hints = get_type_hints(cls)
        values = {}
        for key, value in tree.items():
            name = key_text(key)
            dotted = f"{path}{name}"
            if is_dataclass(hints[name]):
                values[name] = self._settings(value, hints[name], f"{dotted}.")
            else:
                values[name] = self._value(value, hints[name], dotted)
        try:
            return cls(**values)
        except ConfigError as error:  # of a class that stands in several rooms
            if error.message.partition("=")[0] in hints:
                raise ConfigError(f"{path}{error.message}", hint=error.hint) from error
            raise

    def _value(self, value: Any, hint: Any, dotted: str) -> Any:
        inner, optional = _without_none(hint)
        if optional and plain(value) is None:
            return None
        if isinstance(value, bool | int | float):  # of a preset, which is not written in YAML
            value = Written(str(value), value)
        text = value.text if isinstance(value, Written) else value
        if get_origin(inner) is list and isinstance(value, list):
            (kind,) = get_args(inner)
            words = [each.text if isinstance(each, Written) and kind is str else each for each in value]
            return [self._value(each, kind, dotted) for each in words]
        if get_origin(inner) is dict and isinstance(value, dict):
            return plain(value)
        if isinstance(text, str) and plain(value) is not None:
            if inner is str and dotted in self.paths and can_be_path(place := at_home(text)):
                return Resolved(place, text.written) if isinstance(text, Resolved) else place
            if inner is str and dotted not in self.paths:
                return text
            if get_origin(inner) is Literal and text in get_args(inner):
                return text
            if inner is bool and text.lower() in _TRUE + _FALSE:
                return text.lower() in _TRUE
            if inner is int and len(text) <= 100:
                if _DIGITS.fullmatch(text):
                    return int(text)
                if type(plain(value)) is int:  # hexadecimal or binary
                    return plain(value)
            if inner is float and (number := _number(text)) is not None:
                return self._finite(number, dotted)
        wanted = "a path" if dotted in self.paths else _in_words(inner)
        raise ConfigError(f"{shown(dotted)}={shown(plain(value))} is not {wanted}", hint=_SHOW)

    def _finite(self, number: float, dotted: str) -> float:
        """NaN compares with nothing, and so passes whatever range is asked for."""
        if math.isfinite(number) or (number == math.inf and dotted in self.may_be_infinite):
            return number
        default: Any = self.settings()
        for part in dotted.split("."):
            default = getattr(default, part)
        raise ConfigError(f"{dotted}={number} is not a finite number", hint=f"the default is {default}")


def check_known(tree: Mapping[Any, Any], cls: type, path: str) -> None:
    """Refuse unknown fields by name, with the nearest known one."""
    hints = get_type_hints(cls)
    known = [entry.name for entry in fields(cls)]
    for key, value in tree.items():
        name = key_text(key)
        dotted = f"{path}{name}"
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {path}{near[0]}?" if near else f"known here: {', '.join(known)}"
            raise ConfigError(f"{shown(dotted)} is not a field", hint=hint)
        if is_dataclass(hints[name]):
            if not isinstance(value, dict):
                raise ConfigError(
                    f"{dotted}={shown(plain(value))} is not a mapping",
                    hint=f"set its fields, such as {dotted}.{fields(hints[name])[0].name}",
                )
            check_known(value, hints[name], f"{dotted}.")


def leaves(cls: type, path: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted name and the type of every field that is no room of fields itself."""
    hints = get_type_hints(cls)
    for entry in fields(cls):
        hint, dotted = hints[entry.name], f"{path}{entry.name}"
        if is_dataclass(hint):
            yield from leaves(hint, f"{dotted}.")  # type: ignore[arg-type]
        else:
            yield dotted, hint


def float_fields(cls: type) -> Iterator[str]:
    """The dotted name of every field that is a float, or may be one."""
    return (dotted for dotted, hint in leaves(cls) if float in (hint, *get_args(hint)))


def one_line(error: Exception) -> str:
    """The first line of what an error says."""
    said = str(error).strip()
    if (
        isinstance(error, yaml.MarkedYAMLError) and error.problem
    ):  # its first line says what was being read when it was met
        said = error.problem
    reason = said.splitlines()[0] if said else type(error).__name__
    return reason if len(reason) <= 300 else reason[:300] + "..."


def shown(value: Any) -> str:
    """A value in an error's one line."""
    text = masked(repr(value) if not isinstance(value, str | int | float | None) else str(value))
    return text if len(text) <= 80 and text.isprintable() else ascii(text[:80]) + "..."


def _hint_of(cls: type, dotted: str) -> Any:
    """The type of a field; None where there is none of that name, or it lies in a mapping of anything."""
    hint: Any = cls
    for part in dotted.split("."):
        hint = get_type_hints(hint).get(part) if is_dataclass(hint) else None
    return hint


def _without_none(hint: Any) -> tuple[Any, bool]:
    if get_origin(hint) not in (Union, UnionType):
        return hint, False
    (inner,) = (each for each in get_args(hint) if each is not NoneType)
    return inner, True


def _number(text: str) -> float | None:
    try:
        return float(text.lower().replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        return None


def _in_words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) is list:
        return "a list, such as [a, b]"
    if get_origin(hint) is dict:
        return "a mapping of fields"
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(hint, "text")
