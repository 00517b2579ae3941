"""What a verifier returns, and the error of this package."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_fork.errors import MegatronForkError


class RewardError(MegatronForkError):
    """A verifier that does not exist or cannot run; never raised on account of a response."""


@dataclass(frozen=True)
class Score:
    """`value` is the reward (0 or 1); `reason` is one printable line on how it came about."""

    value: float
    reason: str


def excerpt(text: str, limit: int = 60) -> str:
    """Quote `text` for a reason: one line, at most `limit` characters, every unprintable one escaped."""
    shown = text[:limit]
    if not shown.isprintable():
        shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in shown)
    return f"'{shown}'" if len(text) <= limit else f"'{shown}...'"
