"""The base of every class of settings: what its fields declare is checked when one is made, and told in one line.

A class of settings is a dataclass whose fields have the types of `types.py` and a docstring each. Pydantic judges the values
and leaves them as they are: text keeps the reference that it was written as.
"""

from __future__ import annotations

import functools
import textwrap
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import get_close_matches
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar

from megatron_fork.errors import ConfigError, MegatronForkError
from megatron_fork.masking import shown
from megatron_fork.settings.meanings import meanings, types_of
from megatron_fork.settings.types import choices_of, range_of

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

_KINDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list, such as [a, b]",
    "dict_type": "a mapping of fields",
    "predicate_failed": "a path",
    "finite_number": "a finite number",
}
_LONGEST_MEANING = 200


@dataclass
class Settings:
    """A room of fields: `class RemoteConfig(Settings, room="rollout.remote")`."""

    _room: ClassVar[str]
    _error: ClassVar[type[MegatronForkError]]

    def __init_subclass__(cls, *, room: str = "", error: type[MegatronForkError] = ConfigError) -> None:
        """`room`: where its fields lie in a recipe; empty where that is in several places."""
        cls._room, cls._error = f"{room}." if room else "", error

    def __post_init__(self) -> None:
        from pydantic import ValidationError

        cls: Any = type(self)
        for name, adapter in _adapters(cls).items():
            try:
                adapter.validate_python(vars(self)[name])
            except ValidationError as error:
                raise self._refusal(name, error.errors(include_url=False)[0]) from None
        self.check()

    def check(self) -> None:
        """Raise what is wrong with several fields together; each alone is what it declares."""

    def _refusal(self, name: str, problem: ErrorDetails) -> MegatronForkError:
        cls: Any = type(self)
        (default,) = (entry.default for entry in fields(cls) if entry.name == name)
        hint = types_of(cls)[name]
        ways_out = [f"did you mean {each}?" for each in get_close_matches(str(problem["input"]), choices_of(hint), 1)]
        if wanted := range_of(hint)[0]:
            ways_out.append(f"give {wanted}" if wanted[0].isdigit() else f"give a number {wanted}")
        if default is not MISSING:
            ways_out.append(f"the default is {shown(default)}")
        meaning = textwrap.shorten(meanings(cls)[name], _LONGEST_MEANING, placeholder=" ...")
        return cls._error(
            f"{cls._room}{name}={shown(problem['input'])} is {_wrong(hint, problem)}",
            hint="; ".join(filter(None, [*ways_out, f"{name}: {meaning}" if meaning else ""])),
        )


def _wrong(hint: Any, problem: ErrorDetails) -> str:
    """What a value is that a field does not take."""
    value, kind = problem["input"], problem["type"]
    if kind == "is_instance_of":
        return f"no {problem['ctx']['class']}"
    if isinstance(value, float) and not isfinite(value):
        return "not a finite number"
    if choices_of(hint):
        return f"not one of {', '.join(choices_of(hint))}"
    if kind in _KINDS:
        return f"not {_KINDS[kind]}"
    return range_of(hint)[1] or f"refused: {problem['msg']}"


def json_schema_of(hint: Any) -> dict[str, Any]:
    """What pydantic takes for the type of a field, as JSON schema."""
    return _adapter(hint).json_schema()


@functools.cache
def _adapters(cls: type) -> dict[str, TypeAdapter[Any]]:
    """What checks each field; built for the first object of a class."""
    return {entry.name: _adapter(types_of(cls)[entry.name]) for entry in fields(cls)}


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, InstanceOf, TypeAdapter

    if is_dataclass(hint):
        return TypeAdapter(InstanceOf[hint])
    return TypeAdapter(hint, config=ConfigDict(strict=True, allow_inf_nan=False))
