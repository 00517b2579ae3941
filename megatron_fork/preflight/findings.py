"""One line of `doctor`: what was looked at, what was found, and whether something is to be done about it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from megatron_fork.errors import MegatronForkError

Status = Literal["ok", "note", "fix"]


class Finding(NamedTuple):
    """A name, what was found, and a note. `note`: it is worth knowing and stops no run; `fix`: a run would fail."""

    name: str
    found: str
    note: str = ""
    status: Status = "ok"


def refused(name: str, error: MegatronForkError) -> Finding:
    """The line of a check that raised: its message, and its hint as the note."""
    return Finding(name, error.message, error.hint, "fix")


def unchecked(name: str, missing: str) -> Finding:
    """The line of what was not tried, for want of another part."""
    return Finding(name, f"not checked, because `{missing}` is to be fixed first", "", "note")


def fixes(findings: Iterable[Finding]) -> list[str]:
    """Names of the findings that are to be fixed."""
    return [finding.name for finding in findings if finding.status == "fix"]
