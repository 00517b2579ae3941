"""The tables' vocabulary: a name of theirs with the fields that it becomes, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from megatron_fork.planning.peers.values import Given, Kind

Converted = dict[str, Any] | str
"""Our fields by dotted name with their values; or, in words, why this value has no counterpart."""


@dataclass(frozen=True)
class Counterpart:
    """One of their fields that a recipe also has."""

    theirs: str
    ours: tuple[str, ...]
    """The fields of a recipe that it may set."""
    converted: Callable[[Given], Converted]
    note: str = ""
    """What is to be known about it, such as another unit."""
    caution: bool = False
    """Whether the note is a warning: the same name, or the same number, does not mean the same."""
    default: Any = None
    """Their default where a recipe's is another; None: a recipe's own serves as well."""
    assumed: bool = False
    """Whether that default is a guess, of which there is a warning."""


@dataclass(frozen=True)
class Missing:
    """Fields of theirs without a counterpart; `*` in a name stands for anything."""

    theirs: str
    why: str
    lost: bool = True
    """Whether something is missing without it; False: it is always so here, or has no meaning here."""
    off: tuple[Any, ...] = ()
    """Values with which nothing is missing, since they switch it off there."""

    def covers(self, name: str) -> bool:
        return fnmatchcase(name, self.theirs)


@dataclass(frozen=True)
class Own:
    """A field of a recipe that no field of theirs sets, with the value under which a run is like one of theirs."""

    ours: str
    value: Any
    note: str


@dataclass(frozen=True)
class PeerTable:
    """All that is known of another trainer's settings."""

    title: str
    files: str
    """Which files of its are read, in words."""
    arguments: str
    """How its arguments look on a command line: `dotted` (a.b=c) or `options` (--name value)."""
    counterparts: tuple[Counterpart, ...]
    missing: tuple[Missing, ...]
    own: tuple[Own, ...]
    option_prefix: str = ""
    """What the tables write before an option's name."""
    extends: bool = False
    """Whether `defaults` in its YAML names files that are extended."""
    python_class: str = ""
    """The class that a Python program gives settings to, if any."""
    python_trainer: str = ""
    """The class that such a program gives the model to."""
    extra_defaults: Mapping[str, Any] | None = None
    """Defaults that conversions need but that set nothing themselves."""

    @property
    def defaults(self) -> dict[str, Any]:
        found = {each.theirs: each.default for each in self.counterparts if each.default is not None}
        return {**(self.extra_defaults or {}), **found}


def same(
    theirs: str, ours: str, kind: Kind, note: str = "", *, caution: bool = False, default: Any = None
) -> Counterpart:
    """The value itself."""
    return Counterpart(theirs, (ours,), lambda given: {ours: kind(given, theirs)}, note, caution, default)


def choice(
    theirs: str,
    choices: Mapping[Any, Mapping[str, Any] | str],
    note: str = "",
    *,
    caution: bool = False,
    default: Any = None,
) -> Counterpart:
    """The fields that each value of theirs stands for; a value that is not listed has no counterpart."""
    ours = dict.fromkeys(name for each in choices.values() if not isinstance(each, str) for name in each)

    def converted(given: Given) -> Converted:
        value = given.value(theirs)
        if not isinstance(value, str | bool | int) or value not in choices:
            return "this value has no counterpart"
        found = choices[value]
        return found if isinstance(found, str) else dict(found)

    return Counterpart(theirs, tuple(ours), converted, note, caution, default)


def unless_off(
    theirs: str,
    ours: str,
    kind: Kind,
    note: str = "",
    *,
    off: Any,
    our_off: Any = 0,
    caution: bool = False,
    default: Any = None,
) -> Counterpart:
    """The value, or `our_off` where it is at most `off`, which switches it off there."""

    def converted(given: Given) -> Converted:
        value = kind(given, theirs)
        return {ours: our_off if value <= off else value}

    return Counterpart(theirs, (ours,), converted, note, caution, default)


def derived(
    theirs: str,
    ours: str | tuple[str, ...],
    converted: Callable[[Given], Converted],
    note: str = "",
    *,
    caution: bool = False,
    default: Any = None,
    assumed: bool = False,
) -> Counterpart:
    """Fields that are computed, also from other values of the file."""
    return Counterpart(theirs, (ours,) if isinstance(ours, str) else ours, converted, note, caution, default, assumed)


def whole_part(total: int, part: int, unit: str) -> int | str:
    """Total / part; or, in words, why it is not a whole number of at least one."""
    if part < 1 or total < 1 or total % part:
        return f"{total} {unit} are not a multiple of {part}"
    return total // part


def absent(why: str, *names: str, off: tuple[Any, ...] = (), lost: bool = True) -> tuple[Missing, ...]:
    """Several names that are missing for one reason."""
    return tuple(Missing(name, why, lost=lost, off=off) for name in names)
