"""What a recipe names: an entry of one of the package's tables, or the user's own as `module:name`.

Losses, engines and choices of tokens are all looked up here, by the same rules. A module is imported from where Python
searches, and from the current folder.
"""

from __future__ import annotations

import difflib
import importlib
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar

from megatron_fork.errors import ConfigError, ExtensionError, MegatronForkError, StopRequested, shown
from megatron_fork.recipe.field_types import CUSTOM

T = TypeVar("T")
_CUSTOM = re.compile(CUSTOM)
_LONGEST_REASON = 300


def is_custom(name: object) -> bool:
    """Whether a name has the form `module:name` of something outside the package; it is not imported."""
    return isinstance(name, str) and _CUSTOM.fullmatch(name) is not None


def check_name(field: str, name: object, table: Mapping[str, object]) -> None:
    """Raise `ConfigError` unless `name` is in `table` or has the form `module:name`, which is not imported yet."""
    if is_custom(name) or (isinstance(name, str) and name in table):
        return
    raise ConfigError(
        f"{field}={shown(name)} is not one of {', '.join(table)}",
        hint=f"{suggestion(name, table)}or module:name for one of your own",
    )


def suggestion(name: object, known: Iterable[str]) -> str:
    """The known name that is closest to `name`, as a question; empty if none is close."""
    near = difflib.get_close_matches(str(name)[:80], list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]}? " if near else ""


def entry_named(field: str, name: str, table: Mapping[str, T], kind: str, *, made: Callable[[Any], T | None]) -> T:
    """Return the entry of this name.

    Args:
        field: the field of the recipe, for errors.
        name: name of an entry, or `module:name`.
        table: the package's entries.
        kind: what an entry is called, such as `loss`.
        made: makes an entry of the user's object; None if that is not possible.

    Raises:
        ConfigError: nothing has this name, or what has it cannot be an entry.

    """
    check_name(field, name, table)
    if name in table:
        return table[name]
    module, _, attribute = name.partition(":")
    if "" not in sys.path:  # the current folder; last, so that a file there does not hide a package
        sys.path.append("")
    try:
        holds = vars(importlib.import_module(module))
    except (Exception, SystemExit) as error:  # the user's module may raise anything when it is imported
        raise ConfigError(
            f"{field}={name}: {module} cannot be imported: {_reason(error)}",
            hint="add its folder to PYTHONPATH, or run in that folder",
        ) from error
    if attribute not in holds:
        raise ConfigError(
            f"{field}={name}: {module} has no {attribute}", hint=f"{suggestion(attribute, holds)}check its spelling"
        )
    entry = made(holds[attribute])
    if entry is None:
        raise ConfigError(
            f"{field}={name} is of type {type(holds[attribute]).__name__}, which cannot be used as {kind}",
            hint="the project's docs/extending.md has an example",
        )
    return entry


@contextmanager
def told_by_name(field: str, name: str) -> Iterator[None]:
    """Within, code of the user's own is called, where `name` is of that: what it raises is one line with its place."""
    try:
        yield
    except (MegatronForkError, StopRequested):
        raise
    except (Exception, SystemExit) as error:
        if not is_custom(name):
            raise  # a defect of the package
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise ExtensionError(
            f"{field}={name} failed: {_reason(error)} ({place.filename}, line {place.lineno})",
            hint="mend it, and start again with the same run.folder; --debug shows the traceback",
        ) from error


def _reason(error: BaseException) -> str:
    said = " ".join(str(error).split())
    said = said if len(said) <= _LONGEST_REASON else said[:_LONGEST_REASON] + "..."
    return f"{type(error).__name__} {said}".strip()


def check_part(field: str, name: str, what: str, named: object) -> None:
    """Raise `ConfigError` where `what` of a user's entry is neither a function nor `module:name` of one, nor None."""
    if named is None or callable(named):
        return
    found: object = None
    if isinstance(named, str):
        with suppress(Exception):
            found = _imported(named)
    if not callable(found):
        raise ConfigError(
            f"{field}={name} has {what}={shown(named)}, which is no function",
            hint="give a function, or module:name of one that can be imported",
        )


@cache
def _imported(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return attrgetter(attribute)(importlib.import_module(module))


def part(named: str | Callable[..., T]) -> Callable[..., T]:
    """The object that an entry of a table names: itself, or that of `module:name`, whose module is imported only now."""
    found: Callable[..., T] = _imported(named) if isinstance(named, str) else named
    return found
