"""docs/coming_from.md, made of the tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from megatron_fork.planning.peers.table import Counterpart, PeerTable

_HEAD = "| {title} | here | to know |\n|---|---|---|\n"


def reference(table: PeerTable) -> str:
    """A section: their names with ours, what has no counterpart, and what a recipe sets beside."""
    return f"## {table.title}\n\nReads {table.files}.\n\n{_HEAD.format(title=table.title)}" + "".join(_rows(table))


def _rows(table: PeerTable) -> Iterator[str]:
    for entry in table.counterparts:
        yield _line(f"`{entry.theirs}`", ", ".join(f"`{name}`" for name in entry.ours), _note(entry))
    for own in table.own:
        yield _line("", f"`{own.ours}: {_written(own.value)}`", own.note)
    yield f"\nWithout a counterpart:\n\n| {table.title} | why |\n|---|---|\n"
    reasons: dict[str, list[str]] = {}
    for each in table.missing:
        values = " or ".join(f"`{_written(value)}`" for value in each.off)
        said = f"; nothing is lost with {values}" if each.off else "" if each.lost else "; nothing is lost"
        reasons.setdefault(f"{each.why}{said}", []).append(f"`{each.theirs}`")
    for reason, names in reasons.items():
        yield _line(", ".join(names), reason)


def _note(entry: Counterpart) -> str:
    default = (
        ""
        if entry.default is None
        else f"{'; ' if entry.note else ''}`{_written(entry.default)}` where it is not written"
    )
    return f"{'**Mind:** ' if entry.caution else ''}{entry.note}{default}"


def _written(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool | list | dict | None) else str(value)


def _line(*cells: str) -> str:
    return f"| {' | '.join(each.replace('|', chr(92) + '|') for each in cells)} |\n"
