"""From a row to a question and its answer: which columns, and where in them the answer stands."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from megatron_fork.errors import DataError
from megatron_fork.rewards import stated_answer

AnswerForm = Literal["whole", "boxed", "hashes"]
HASHES = re.compile(r"####(.*)")


@dataclass
class Columns:
    """Where a row has what. A dotted path leads into structures and lists: `prompt.0.content`, `reward_model.ground_truth`."""

    prompt: str = "prompt"
    """The question; a list of chat messages is taken where it is one message of the user."""
    answer: str = "answer"
    """A list of answers becomes one, separated by commas."""
    id: str | None = None
    """Where given, no two rows may have the same."""


def pick(row: dict[str, Any], path: str, place: str) -> Any:
    """The value at a dotted path; raises `DataError` that names the row and what it has instead."""
    value: Any = row
    for step in path.split("."):
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            known = ", ".join(value) if isinstance(value, dict) else f"a {type(value).__name__}"
            raise DataError(
                f"{place} has no column {path}; it has {known}", hint="set data.columns.prompt and data.columns.answer"
            )
    return value


def question_of(row: dict[str, Any], path: str, place: str) -> str:
    value = pick(row, path, place)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict) and value[0].get("role") == "user":
        value = value[0].get("content")
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place} has the prompt {_short(value)}", hint="a prompt is text of at least one token")
    return value


def answer_of(row: dict[str, Any], path: str, form: AnswerForm, place: str) -> str:
    value = pick(row, path, place)
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    text = "" if value is None else str(value)
    if form == "boxed":
        found = stated_answer(text)
    elif form == "hashes":
        match = HASHES.search(text)
        found = match[1].strip() if match else None
    else:
        found = text
    if found is None:
        raise DataError(f"{place} has the answer {_short(text)}, which is not data.answer_form={form}", hint=FORMS)
    return found


def without(text: str, prefix: str, suffix: str, place: str) -> str:
    """`text` less what a data set wraps around every question; raises `DataError` where it does not."""
    if not text.startswith(prefix) or not text.endswith(suffix) or len(text) < len(prefix) + len(suffix):
        raise DataError(
            f"{place} has a prompt without data.prompt_prefix or data.prompt_suffix: {_short(text)}",
            hint="set both to '' where the file has bare questions",
        )
    return text[len(prefix) : len(text) - len(suffix)]


FORMS = "whole takes the column as it is, boxed what is in \\boxed{...}, hashes what follows ####"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
