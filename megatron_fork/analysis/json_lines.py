"""Reads JSON lines; every error names the file, the line and the field."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_fork.errors import MegatronForkError


class AnalysisError(MegatronForkError):
    """A run folder that cannot be read as what it claims to be."""


@dataclass(frozen=True)
class JsonLine:
    """One JSON object and its place, such as `metrics.jsonl line 7`."""

    where: str
    fields: dict[str, Any]

    def number(self, name: str) -> float | None:
        """Return the field as a float, which may be NaN or infinite; None if it is missing or null."""
        value = self.fields.get(name)
        return None if value is None else self._as_number(name, value)

    def whole(self, name: str) -> int:
        """Return the field as a whole number from 0 that a float can represent exactly."""
        value = self.fields.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 53:
            raise self._complaint(name, value, "a whole number from 0")
        return value

    def text(self, name: str) -> str:
        """Return the field as a string."""
        value = self.fields.get(name)
        if not isinstance(value, str):
            raise self._complaint(name, value, "a string")
        return value

    def one_of(self, name: str, known: Sequence[str]) -> str:
        """Return the field as one of the `known` strings."""
        text = self.text(name)
        if text not in known:
            raise self._complaint(name, text, f"one of {', '.join(known)}")
        return text

    def texts(self, name: str) -> list[str]:
        """Return the field as a list of strings."""
        values = self._list(name)
        for value in values:
            if not isinstance(value, str):
                raise self._complaint(name, value, "a list of strings")
        return values

    def flags(self, name: str) -> list[bool]:
        """Return the field as a list of booleans."""
        values = self._list(name)
        for value in values:
            if not isinstance(value, bool):
                raise self._complaint(name, value, "a list of true and false")
        return values

    def numbers(self, name: str) -> list[float]:
        """Return the field as a list of floats; null, which strict JSON writers use for NaN, becomes NaN."""
        return [float("nan") if value is None else self._as_number(name, value) for value in self._list(name)]

    def _list(self, name: str) -> list[Any]:
        value = self.fields.get(name)
        if not isinstance(value, list):
            raise self._complaint(name, value, "a list")
        return value

    def _as_number(self, name: str, value: object) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                pass
        raise self._complaint(name, value, "a number")

    def _complaint(self, name: str, value: object, wanted: str) -> AnalysisError:
        shown = "missing" if name not in self.fields else shortened(repr(value))
        return AnalysisError(f"{self.where}: field {name!r} is {shown}, not {wanted}")


@dataclass(frozen=True)
class JsonLines:
    """The objects of one file; `truncated`: whether a half-written last line was left out."""

    lines: list[JsonLine]
    truncated: bool


def read_json_lines(path: Path) -> JsonLines:
    """Read one JSON object from each line that is not blank.

    A last line without a newline that does not parse is half-written by a running job: it is left out. Any other line that
    is not a JSON object raises AnalysisError.
    """
    # Bytes are split, not text: str.splitlines would also split at U+2028, which JSON may hold inside a string.
    *whole, rest = read_bytes(path).split(b"\n")
    lines = [
        parse_object(raw, f"{path.name} line {number}") for number, raw in enumerate(whole, start=1) if raw.strip()
    ]
    if not rest.strip():
        return JsonLines(lines, truncated=False)
    try:
        return JsonLines([*lines, parse_object(rest, f"{path.name} line {len(whole) + 1}")], truncated=False)
    except AnalysisError:
        return JsonLines(lines, truncated=True)


def read_bytes(path: Path) -> bytes:
    """Return the content of a file; raises AnalysisError if the system refuses it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise AnalysisError(f"{path} cannot be read: {error.strerror}") from error


def parse_object(raw: bytes, where: str) -> JsonLine:
    """Parse one JSON object in UTF-8; the message of an AnalysisError begins with `where`."""
    try:
        value = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        reason = shortened(str(error))
        raise AnalysisError(f"{where}: not JSON ({reason}): {shortened(raw.decode(errors='replace'))}") from error
    if not isinstance(value, dict):
        raise AnalysisError(f"{where}: not a JSON object: {shortened(repr(value))}")
    return JsonLine(where, value)


def shortened(text: str, characters: int = 60) -> str:
    """Return text on one line, printable and cut to a length."""
    line = "".join(character if character.isprintable() else " " for character in text).strip()
    return line if len(line) <= characters else f"{line[:characters]}..."
