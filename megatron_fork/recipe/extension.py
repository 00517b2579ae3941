"""What a recipe names: an entry of one of the package's tables, or `module:name` of the user's own.

Losses, engines and choices of tokens are looked up here, so that all of them are named, searched for and refused alike. A
module is searched where Python searches, and in the current folder.
"""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar

from megatron_fork.errors import ConfigError, shown
from megatron_fork.recipe.field_types import CUSTOM

T = TypeVar("T")
_CUSTOM = re.compile(CUSTOM)


def is_custom(name: object) -> bool:
    """Whether a name has the form `module:name` of something outside the package; it is not looked for."""
    return isinstance(name, str) and _CUSTOM.fullmatch(name) is not None


def check_name(field: str, name: object, table: Mapping[str, object]) -> None:
    """Raise `ConfigError` unless `name` is in `table` or has the form of one of the user's own, which is not imported yet."""
    if is_custom(name) or (isinstance(name, str) and name in table):
        return
    raise ConfigError(
        f"{field}={shown(name)} is not one of {', '.join(table)}",
        hint=f"{suggestion(name, table)}or module:name of something of your own",
    )


def suggestion(name: object, known: Iterable[str]) -> str:
    """The known name that is close to what was given, as a question; empty where none is."""
    near = difflib.get_close_matches(str(name)[:80], list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]}? " if near else ""


def entry_named(field: str, name: str, table: Mapping[str, T], kind: str, *, made: Callable[[Any], T | None]) -> T:
    """The entry of this name.

    Args:
        field: of the recipe, for errors.
        name: of an entry, or `module:name`.
        table: the package's entries.
        kind: what an entry is called, as `loss`.
        made: an entry of what the user's module holds; None where it can be none.

    Raises:
        ConfigError: nothing has this name, or what has it is no entry.

    """
    check_name(field, name, table)
    if name in table:
        return table[name]
    module, _, attribute = name.partition(":")
    if "" not in sys.path:  # the current folder; last, so that a file there hides no package
        sys.path.append("")
    try:
        holds = vars(importlib.import_module(module))
    except Exception as error:  # whatever the user's module does when it is imported
        said = " ".join(str(error).split())
        raise ConfigError(
            f"{field}={name}: {module} cannot be imported: {type(error).__name__} {said}",
            hint="put its folder on PYTHONPATH, or run where it lies",
        ) from error
    if attribute not in holds:
        raise ConfigError(
            f"{field}={name}: {module} has no {attribute}", hint=f"{suggestion(attribute, holds)}check its spelling"
        )
    entry = made(holds[attribute])
    if entry is None:
        raise ConfigError(
            f"{field}={name} is of type {type(holds[attribute]).__name__}, which makes no {kind}",
            hint="the project's docs/extending.md shows one",
        )
    return entry


@cache
def _imported(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return attrgetter(attribute)(importlib.import_module(module))


def part(named: str | Callable[..., T]) -> Callable[..., T]:
    """What an entry of a table names: itself, or `module:name`, whose module is imported only now."""
    found: Callable[..., T] = _imported(named) if isinstance(named, str) else named
    return found
