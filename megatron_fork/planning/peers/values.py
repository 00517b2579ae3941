"""Values of another trainer's file: what is written there, what it leaves to its defaults, and what cannot be known from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_fork.errors import ConfigError, shown


@dataclass(frozen=True)
class Unresolved:
    """A value that only the program or shell that runs the file knows."""

    text: str

    def __str__(self) -> str:
        return self.text


class Unknown(Exception):
    """A conversion needs a value that the file does not tell."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True)
class Given:
    """The values of a file by their dotted names, and the other trainer's defaults for those that are not written.

    `whole`, `number`, `flag` and `text` raise `ConfigError` for a value of another type, and `Unknown` where there is none.
    """

    written: Mapping[str, Any]
    defaults: Mapping[str, Any]

    def value(self, name: str) -> Any:
        found = self.written[name] if name in self.written else self.defaults.get(name)
        if found is None or isinstance(found, Unresolved):
            raise Unknown(name)
        return found

    def is_written(self, name: str) -> bool:
        """Whether the file has a value, other than null, that can be known."""
        found = self.written.get(name)
        return found is not None and not isinstance(found, Unresolved)

    def whole(self, name: str) -> int:
        found = self.value(name)
        if isinstance(found, float) and found.is_integer():
            found = int(found)
        if isinstance(found, bool) or not isinstance(found, int):
            raise _wrong(name, found, "a whole number")
        return found

    def number(self, name: str) -> float:
        found = self.value(name)
        try:
            as_float = math.nan if isinstance(found, bool) or not isinstance(found, int | float) else float(found)
        except OverflowError:
            as_float = math.inf
        if not math.isfinite(as_float):
            raise _wrong(name, found, "a number")
        return as_float

    def flag(self, name: str) -> bool:
        found = self.value(name)
        if not isinstance(found, bool) and found not in ("true", "false", 0, 1):
            raise _wrong(name, found, "true or false")
        return found in (True, "true")

    def text(self, name: str) -> str:
        found = self.value(name)
        if not isinstance(found, str) or not found:
            raise _wrong(name, found, "text")
        return found


Kind = Callable[[Given, str], Any]
"""One of `Given.whole`, `Given.number`, `Given.flag` and `Given.text`."""


def _wrong(name: str, found: Any, kind: str) -> ConfigError:
    return ConfigError(f"{name}={shown(found)} is not {kind}", hint="correct it in the file, or take the line out")
