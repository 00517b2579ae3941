"""From a row to a question: which columns hold what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_fork.data.answers import short
from megatron_fork.errors import DataError


@dataclass
class Columns:
    """Where a row has what. A dotted path leads into structures and lists: `prompt.0.content`, `reward_model.ground_truth`."""

    prompt: str = "prompt"
    """The question; a list of chat messages is taken where it is one message of the user."""
    answer: str = "answer"
    """The reference answer, or several in a list."""
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
        raise DataError(f"{place} has the prompt {short(value)}", hint="a prompt is text of at least one token")
    return value


def without(text: str, prefix: str, suffix: str, place: str) -> str:
    """`text` less what a data set wraps around every question; raises `DataError` where it does not."""
    if not text.startswith(prefix) or not text.endswith(suffix) or len(text) < len(prefix) + len(suffix):
        raise DataError(
            f"{place} has a prompt without data.prompt_prefix or data.prompt_suffix: {short(text)}",
            hint="set both to '' where the file has bare questions",
        )
    return text[len(prefix) : len(text) - len(suffix)]
