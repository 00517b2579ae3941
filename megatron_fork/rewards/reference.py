"""The reference answer as one string: plain, or with others that are right too, or with what else a verifier takes of the row.

Prompts, jobs and checkpoints carry one string. Where there is more to say it is JSON behind a record separator, a control
character that no answer begins with; one that did would be wrapped the same way, so nothing is ever taken for the other.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

MARK = "\x1e"


@dataclass(frozen=True)
class Reference:
    """`answers`: at least one, any of which is right."""

    answers: tuple[str, ...]
    data_source: str = ""
    """Where the row comes from, for verifiers that tell sets apart."""
    extra_info: Any = None
    """The row's column of that name, as JSON has it."""

    def encoded(self) -> str:
        """The string that `read_reference` reads; a single plain answer is itself."""
        first, *others = self.answers
        if not others and not self.data_source and self.extra_info is None and not first.startswith(MARK):
            return first
        return MARK + json.dumps(
            {"answers": self.answers, "data_source": self.data_source, "extra_info": self.extra_info}
        )

    def __str__(self) -> str:
        return " or ".join(self.answers)


def read_reference(text: str) -> Reference:
    """What `encoded` wrote; any other string is a plain answer."""
    if not text.startswith(MARK):
        return Reference((text,))
    try:
        fields = json.loads(text[len(MARK) :])
        answers = tuple(fields["answers"])
        data_source, extra_info = fields["data_source"], fields["extra_info"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return Reference((text,))
    if not answers or not all(isinstance(answer, str) for answer in (*answers, data_source)):
        return Reference((text,))
    return Reference(answers, data_source, extra_info)
