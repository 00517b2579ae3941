"""The base of every class of settings: values are checked when an object is made, and an error is one line.

A class of settings is a dataclass whose fields have the types of `field_types.py` and a docstring each. Pydantic checks the
values without changing them, so that text keeps the reference that it was written as.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import get_close_matches
from itertools import pairwise
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar, get_type_hints

from megatron_fork.errors import ConfigError, MegatronForkError, shown
from megatron_fork.recipe.field_types import choices_of, may_be_custom, may_be_infinite, range_of, unit_of

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
    """A group of fields: `class RemoteConfig(Settings, room="rollout.remote")`."""

    _room: ClassVar[str]
    _error: ClassVar[type[MegatronForkError]]

    def __init_subclass__(cls, *, room: str = "", error: type[MegatronForkError] = ConfigError) -> None:
        """`room`: the dotted name of the group in a recipe; empty if it is used in several places."""
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
        """Raise an error if fields do not fit each other; each has already been checked alone."""

    def _refusal(self, name: str, problem: ErrorDetails) -> MegatronForkError:
        cls: Any = type(self)
        (default,) = (entry.default for entry in fields(cls) if entry.name == name)
        hint = types_of(cls)[name]
        ways_out = [f"did you mean {each}?" for each in get_close_matches(str(problem["input"]), choices_of(hint), 1)]
        if may_be_custom(hint):
            ways_out.append("or module:name for one of your own")
        if wanted := range_of(hint)[0]:
            unit = f", in {unit_of(hint)}" if unit_of(hint) else ""
            ways_out.append((f"give {wanted}" if wanted[0].isdigit() else f"give a number {wanted}") + unit)
        if default not in (MISSING, None):
            ways_out.append(f"the default is {shown(default)}")
        meaning = textwrap.shorten(meanings(cls)[name], _LONGEST_MEANING, placeholder=" ...")
        return cls._error(
            f"{cls._room}{name}={shown(problem['input'])} is {_wrong(hint, problem)}",
            hint="; ".join(filter(None, [*ways_out, f"{name}: {meaning}" if meaning else ""])),
        )


def _wrong(hint: Any, problem: ErrorDetails) -> str:
    """Words for a value that a field does not accept, to follow `is`."""
    value, kind = problem["input"], problem["type"]
    if kind == "is_instance_of":
        return f"not a {problem['ctx']['class']}"
    if isinstance(value, float) and not isfinite(value):
        return "not a finite number"
    if choices_of(hint):
        return f"not one of {', '.join(choices_of(hint))}"
    if kind == "string_pattern_mismatch":  # whose words would be a regular expression
        return "not in the form that it must have"
    if kind in _KINDS:
        return f"not {_KINDS[kind]}"
    return range_of(hint)[1] or f"refused: {problem['msg']}"


@functools.cache
def types_of(cls: Any) -> dict[str, Any]:
    """The type of every field of a class, with its range and unit; empty for anything but a dataclass."""
    hints = get_type_hints(cls, include_extras=True) if is_dataclass(cls) else {}
    return {name: hint for name, hint in hints.items() if not name.startswith("_")}


@functools.cache
def meanings(cls: Any) -> dict[str, str]:
    """The docstring below each field of a class of settings, with the choices of a field that has some."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(node, ast.ClassDef)
    found = dict.fromkeys(types_of(cls), "")
    for pair in pairwise(node.body):
        match pair:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                found[name] = " ".join(text.split())
    for name, hint in types_of(cls).items():
        if not set(choices_of(hint)) <= set(re.findall(r"\w+", found[name])):
            found[name] = f"{found[name]} One of {', '.join(choices_of(hint))}.".strip()
    return found


@functools.cache
def _adapters(cls: type) -> dict[str, TypeAdapter[Any]]:
    """The pydantic adapter of each field; built for the first object of a class."""
    return {name: _adapter(hint) for name, hint in types_of(cls).items()}


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, InstanceOf, TypeAdapter

    if is_dataclass(hint):
        return TypeAdapter(InstanceOf[hint])
    return TypeAdapter(hint, config=ConfigDict(strict=True, allow_inf_nan=may_be_infinite(hint)))
