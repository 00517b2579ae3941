"""How the minutes are shared: each part gets its share of what is left, so that a part that ends early gives its time on."""

from __future__ import annotations

from collections.abc import Sequence

from gpu_check.errors import CheckError
from gpu_check.parts import Part


def limit_of(part: Part, rest: Sequence[Part], seconds_left: float) -> float:
    """Seconds that `part` may take of those left, `rest` being the parts after it that will run.

    All limits together never pass what was left at the first; no part gets more than its `most`.
    """
    shares = part.share + sum(other.share for other in rest)
    return max(0.0, min(part.most, seconds_left * part.share / shares))


def refuse_too_few(parts: Sequence[Part], minutes: float) -> None:
    """Raise where a part would get less than it needs for any result; what is spent before the first is `BEFORE_SECONDS`."""
    if not parts:
        return
    shares = sum(part.share for part in parts)
    needed = max(part.least * shares / part.share for part in parts) + BEFORE_SECONDS
    if minutes * 60 < needed:
        tightest = max(parts, key=lambda part: part.least / part.share)
        rounded_up = -(-needed // 6) / 10
        raise CheckError(
            f"--minutes {minutes:g} is too few for {len(parts)} parts: {tightest.name} alone needs {tightest.least:.0f} s",
            hint=f"give at least {rounded_up:g} minutes, or name fewer parts",
        )


# Looking at the machine: torch is imported once, and Transformer Engine where it is installed.
BEFORE_SECONDS = 15.0
