"""Reads the answers of a row from its answer column, as text and without guessing; a row without an answer gets none.

A column may hold text, a number, a list, or an object. Nothing is written as Python prints it, since no verifier reads that.
"""

from __future__ import annotations

import ast
import datetime
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from megatron_fork.errors import DataError

AnswerForm = Literal["whole", "boxed", "hashes"]
AnswerLists = Literal["alternatives", "parts", "json"]
Boxes = Literal["refuse", "last", "all"]

# What published sets, and the libraries that write them, have instead of an answer: NuminaMath-1.5 has "proof" and "notfound".
NO_ANSWER = (
    *("null", "none", "nan", "<na>", "#n/a", "n/a", "nil", "notfound", "not found", "no answer"),
    *("proof", "see proof", "see the proof", "see solution", "see the solution", "see explanation"),
)
HASHES = re.compile(r"####(.*)")
QUOTED_LIST = re.compile(r"\[\s*[\"']")
FORMS = (
    r"whole takes the column as it is, boxed takes what is in \boxed{...}, hashes takes what follows ####; "
    "data.unanswered=drop leaves such rows out"
)
LISTS = "data.answer_lists=json passes lists and objects as JSON text to your own verifier"


class NoAnswer(Exception):
    """A row without an answer; the message says what it has instead, and the second argument is a hint."""


@dataclass(frozen=True)
class AnswerReader:
    """How the answers of a row are read; the fields are those of `data`."""

    column: str
    form: AnswerForm
    lists: AnswerLists
    boxes: Boxes
    no_answer: frozenset[str]

    def read(self, value: Any, place: str) -> tuple[str, ...]:
        """The right answers, one or several; raises `NoAnswer` if there is none, `DataError` if the value cannot be one."""
        texts = [self._stated(text, place) for text in self._texts(value, place)]
        if not texts or any(self._is_none(text) for text in texts):
            raise NoAnswer(
                f"{place} has no answer in {self.column}: {short(value)}",
                "data.unanswered=drop leaves such rows out; data.no_answer lists the words that mean no answer",
            )
        return (", ".join(texts),) if self.lists == "parts" else tuple(dict.fromkeys(texts))

    def _texts(self, value: Any, place: str) -> list[str]:
        if (
            isinstance(value, str)
            and self.form == "whole"
            and self.lists != "json"
            and QUOTED_LIST.match(value.strip())
        ):
            value = self._list_in_text(value.strip(), place)
        if isinstance(value, list) and self.lists != "json":
            return [self._text(entry, place) for entry in value]
        if (isinstance(value, dict) and "tests" in value) or (isinstance(value, dict | list) and self.lists == "json"):
            return [self._json(value, place)] if value else []
        return [self._text(value, place)]

    def _list_in_text(self, text: str, place: str) -> list[Any]:
        """A list that was written into a text column, as JSON or as Python."""
        for read, write in ((json.loads, None), (ast.literal_eval, repr)):
            try:
                value = read(text)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
            # Python reads `['1' '2']`, which NumPy writes for two entries, as one entry.
            if isinstance(value, list) and (write is None or write(value) == text):
                return value
        raise DataError(
            f"{place} has text in {self.column} that looks like a list but is not one: {short(text)}",
            hint=f"write lists as JSON; {LISTS}, and passes such text unchanged",
        )

    def _text(self, value: Any, place: str) -> str:
        if isinstance(value, str):
            return value
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, int):
            return str(value)
        if value is None or (isinstance(value, float | Decimal) and not math.isfinite(value)):
            return ""
        if isinstance(value, float | Decimal):  # in digits: answers are not written as 1e-05
            return format(Decimal(str(value)), "f")
        raise DataError(
            f"{place} has in {self.column} {_named(value)}, not an answer: {short(value)}",
            hint='name a field in it, as in reward_model.ground_truth; an object must have {"tests": ...}; ' + LISTS,
        )

    def _json(self, value: Any, place: str) -> str:
        try:
            return json.dumps(_without_nulls(value), ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{place} has a value in {self.column} that JSON cannot hold ({error}): {short(value)}",
                hint="write it as text, numbers, lists and objects",
            ) from error

    def _stated(self, text: str, place: str) -> str:
        """The part of `text` that is the answer."""
        if self.form == "whole" or self._is_none(text):
            return text
        if self.form == "hashes":
            match = HASHES.search(text)
            found = [match[1].strip()] if match else []
        else:
            found = boxed_answers(text)
        if not found:
            raise NoAnswer(f"{place} has the answer {short(text)}, which is not data.answer_form={self.form}", FORMS)
        if len(found) > 1 and self.boxes == "refuse":
            raise DataError(
                f"{place} has in {self.column} {len(found)} different boxes: {short(', '.join(found))}",
                hint="data.boxes=last takes the last box, as evaluations of MATH do; data.boxes=all takes all as one answer",
            )
        return ", ".join(found) if self.boxes == "all" else found[-1]

    def _is_none(self, text: str) -> bool:
        return not text.strip() or " ".join(text.split()).strip(".()[]$ ").casefold() in self.no_answer


def reader(
    column: str, form: AnswerForm, lists: AnswerLists, boxes: Boxes, no_answer: Iterable[str] = NO_ANSWER
) -> AnswerReader:
    return AnswerReader(column, form, lists, boxes, frozenset(word.casefold() for word in no_answer))


def short(value: Any) -> str:
    """A value for a message, at most 80 characters of it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _without_nulls(value: Any) -> Any:
    """Removes null fields: in columnar files every row has the fields of all rows, with null for those that it lacks."""
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _named(value: Any) -> str:
    names = {dict: "an object", list: "a list in a list", bytes: "bytes", datetime.datetime: "a time"}
    return names.get(type(value), f"a {type(value).__name__}")


OPENING = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
END_OF_FORMULA = re.compile(r"\$|\\\)|\\\]|\\end(?![A-Za-z])")


def boxed_answers(solution: str) -> list[str]:
    """The content of each outermost box, in order and without repeats; a box that is not closed is left out."""
    found, place = [], 0
    while opening := OPENING.search(solution, place):
        if solution.startswith("{", opening.end()):
            content, place = _braced(solution, opening.end())
        else:
            content, place = _bare(solution, opening.end())
        if content is not None:
            found.append(content.strip())
    return list(dict.fromkeys(found))


def _braced(text: str, start: int) -> tuple[str | None, int]:
    """(content, place after it) of the group that opens at `start`."""
    depth = 0
    for token in BRACE.finditer(text, start):
        depth += (token[0] == "{") - (token[0] == "}")
        if depth == 0:
            return text[start + 1 : token.start()], token.end()
    return None, start


def _bare(text: str, start: int) -> tuple[str | None, int]:
    """The content of a box without braces: to the end of the formula, as problem sets mean it, or else of the word."""
    line = text[start:].split("\n", 1)[0]
    end = END_OF_FORMULA.search(line)
    content = line[: end.start()] if end else line.split(" ", 1)[0].rstrip(".,;:")
    return content.strip() or None, start + len(content)
