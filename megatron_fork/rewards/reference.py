"""The reference answer as one string: plain, or with other right answers, or with other fields of the row for a verifier.

Prompts, jobs and checkpoints carry one string. If there is more than one plain answer, it is JSON after a record separator, a
control character that no answer begins with; an answer that did would be encoded the same way, so the two are never confused.
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
    """The data set of the row, for verifiers that distinguish data sets."""
    extra_info: Any = None
    """The row's column of that name, as JSON values."""

    def encoded(self) -> str:
        """The string that `read_reference` reads; a single plain answer stays as it is."""
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
