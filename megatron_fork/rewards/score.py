"""The score that a verifier returns, the score of a verifier that failed, and the errors of this package."""

from __future__ import annotations

import sysconfig
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from megatron_fork.errors import MegatronForkError

Failure = Literal["error", "timed_out", "died"]
"""How a verifier failed: it raised an error or the reference answer is unusable, it timed out, or its process died."""

# Frames from these folders are not the user's own code.
LIBRARIES = (sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
FOREIGN = (f"{Path(__file__).parents[1]}/", *(f"{path}/" for path in LIBRARIES), "<")


class RewardError(MegatronForkError):
    """A verifier that does not exist or cannot run; never raised because of a response."""


class NotAValueError(Exception):
    """The text does not fit the grammar; the message is the rest of a sentence about it."""


class TooCostlyError(NotAValueError):
    """Its value would cost more to find than is allowed for an answer."""

    def __init__(self) -> None:
        super().__init__("would cost too much to evaluate")


@dataclass(frozen=True)
class Score:
    """`value` is the reward (0 or 1); `reason` is one printable line that explains it."""

    value: float
    reason: str
    failure: Failure | None = field(default=None, compare=False, repr=False)
    """Set if the response was not judged, because the verifier failed; the reason says how. Such a score is 0."""


def failed(error: BaseException) -> Score:
    """The score of a response on which a verifier raised `error`; it names the type, message and line of the user's code."""
    try:
        message = printable(str(error), 300)
    except Exception:  # the user's exception may be as broken as the verifier
        message = ""
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = [place for place in frames if not place[0].startswith(FOREIGN)]
    places = [f" ({file}:{line})" for file, line in (own or frames)[-1:]]
    said = f": {message}" if message else ""
    return Score(0.0, f"verifier raised {type(error).__name__}{said}{''.join(places)}", "error")


def printable(text: str, limit: int) -> str:
    """At most `limit` characters of `text` on one line; unprintable ones are escaped."""
    shown = _escaped(" ".join(text[:limit].split()))
    return shown if len(text) <= limit else f"{shown}..."


def excerpt(text: str, limit: int = 60) -> str:
    """Quote `text` for a reason: one line, at most `limit` characters, every unprintable one escaped."""
    shown = _escaped(text[:limit])
    return f"'{shown}'" if len(text) <= limit else f"'{shown}...'"


def _escaped(text: str) -> str:
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
