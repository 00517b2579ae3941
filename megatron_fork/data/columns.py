"""Reads the question and solution of a row, by the columns that hold them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_fork.data.answers import short
from megatron_fork.data.conversations import question_in
from megatron_fork.errors import DataError
from megatron_fork.recipe import Settings


@dataclass
class Columns(Settings, room="data.columns"):
    """Columns of a row. A dotted path leads into structures and lists: `prompt.0.content`, `reward_model.ground_truth`."""

    prompt: str = "prompt"
    """The question: text, or a list of chat messages whose last one is the user's."""
    answer: str = "answer"
    """The reference answer, or several in a list."""
    solution: str | None = None
    """A response to imitate in the warm start (`sft.steps`), as text; None: the set has none."""
    id: str | None = None
    """If set, no two rows may have the same value in this column."""


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
    """The question in a row, a `Conversation` if it has several messages; raises `DataError`."""
    return question_in(pick(row, path, place), place)


def solution_of(row: dict[str, Any], path: str, place: str) -> str:
    """The response to imitate; raises `DataError` if the row has none."""
    value = pick(row, path, place)
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"{place} has the solution {short(value)} in {path}",
            hint="every row needs one as text; data.columns.solution=null ignores the solutions",
        )
    return value


def without(text: str, prefix: str, suffix: str, place: str) -> str:
    """`text` without what a data set puts around every question; raises `DataError` if that is missing."""
    if not text.startswith(prefix) or not text.endswith(suffix) or len(text) < len(prefix) + len(suffix):
        raise DataError(
            f"{place} has a prompt without data.prompt_prefix or data.prompt_suffix: {short(text)}",
            hint="set both to '' if the file has bare questions",
        )
    return text[len(prefix) : len(text) - len(suffix)]
