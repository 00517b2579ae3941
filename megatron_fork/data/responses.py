"""Prompts and responses from a file of any framework: texts, chat messages or token ids, one response a row or several."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from megatron_fork.data.answers import short
from megatron_fork.data.rows import READERS, read_rows
from megatron_fork.data.split import question_key
from megatron_fork.errors import DataError

PROMPTS = ("prompt", "question", "problem", "messages", "input", "query")
RESPONSES = (
    *("response", "responses", "completion", "completions", "output", "outputs", "generation", "generations"),
    "generated_text",
)
REWARDS = ("reward", "rewards", "score", "scores", "correct", "is_correct")
ANSWERS = ("answer", "ground_truth", "reference_answer")
_WAY_OUT = "name the columns: --columns prompt=NAME,response=NAME"
Message = Mapping[str, Any]


@dataclass(frozen=True)
class GivenResponse:
    """A response that a file holds, in the tokens of the model that is to read it."""

    prompt: str
    prompt_id: str
    prompt_tokens: list[int]
    answer: str
    sample: int
    text: str
    tokens: list[int]
    reward: float | None


def read_responses(
    file: Path, tokenizer: PreTrainedTokenizerBase, columns: Mapping[str, str] | None = None
) -> Iterator[GivenResponse]:
    """Every response of a JSON-lines or Parquet file, in its order.

    Args:
        file: rows with a prompt (text, chat messages, token ids) and its response or a list of responses. Without a column of
            responses, chat messages whose last one is the assistant's are prompt and response.
        tokenizer: texts are read with it, without an end token; chat messages with its template.
        columns: names for `prompt`, `response`, `reward` and `answer` in place of the usual ones.

    Raises:
        DataError: names the file, row and column that cannot be read, or the columns that might be meant.

    """
    if not file.is_file() or file.suffix.lower() not in READERS:
        what = f"has the suffix {file.suffix!r}" if file.is_file() else "is not a file"
        raise DataError(f"--responses={file} {what}", hint=f"readable: {', '.join(sorted(READERS))}")
    reader, chosen = _Reader(tokenizer), None
    for place, row in read_rows(file):
        chosen = chosen or _choose(row, dict(columns or {}), place)
        yield from reader.row(row, chosen, place)


def columns_named(text: str) -> dict[str, str]:
    """`prompt=NAME,response=NAME` as a mapping; raises `DataError`."""
    known = ("prompt", "response", "reward", "answer")
    pairs = [part.partition("=") for part in text.split(",") if part]
    for name, equals, column in pairs:
        if name.strip() not in known or not equals or not column.strip():
            raise DataError(f"--columns={text}: {name!r} is none of {', '.join(known)}", hint=_WAY_OUT)
    return {name.strip(): column.strip() for name, _, column in pairs}


def _choose(row: Mapping[str, Any], given: dict[str, str], place: str) -> dict[str, str]:
    """Which column is what; those that are given are taken as they are."""
    for column in given.values():
        if column not in row:
            raise DataError(f"{place} has no column {column}; it has {', '.join(row)}", hint=_WAY_OUT)
    found = dict(given)
    needed: dict[str, tuple[str, ...]] = {"prompt": PROMPTS, "response": RESPONSES}
    wanted: dict[str, tuple[str, ...]] = {"reward": REWARDS, "answer": ANSWERS}
    for kind, usual in needed.items():
        if kind in found:
            continue
        present = [name for name in usual if row.get(name) is not None]
        if len(present) > 1:
            raise DataError(f"{place}: the {kind} may be in {' or '.join(present)}", hint=_WAY_OUT)
        if present:
            found[kind] = present[0]
    if "prompt" not in found or ("response" not in found and not _ends_with_assistant(row[found["prompt"]])):
        missing = "prompt" if "prompt" not in found else "response"
        raise DataError(f"{place} has no {missing} column that is known; it has {', '.join(row)}", hint=_WAY_OUT)
    for kind, usual in wanted.items():
        present = [name for name in usual if name in row]
        if kind not in found and len(present) == 1 and (kind != "reward" or _is_reward(row[present[0]])):
            found[kind] = present[0]
    return found


class _Reader:
    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def row(self, row: Mapping[str, Any], columns: Mapping[str, str], place: str) -> Iterator[GivenResponse]:
        for name in columns.values():
            if name not in row:
                raise DataError(f"{place} has no column {name}; it has {', '.join(row)}", hint=_WAY_OUT)
        asked = row[columns["prompt"]]
        if "response" in columns:
            responses = _several(row[columns["response"]])
        else:
            if not _ends_with_assistant(asked):
                raise DataError(
                    f"{place}: {columns['prompt']} does not end with the assistant's message", hint=_WAY_OUT
                )
            asked, responses = asked[:-1], [asked[-1]["content"]]
        text, tokens = self._prompt(asked, columns["prompt"], place)
        rewards = _rewards(row.get(columns.get("reward", "")), len(responses), place)
        answer = row.get(columns.get("answer", ""))
        for sample, (response, reward) in enumerate(zip(responses, rewards, strict=True)):
            written, ids = self._response(response, columns.get("response", ""), place)
            yield GivenResponse(
                *(text, f"{question_key(text):016x}", tokens, "" if answer is None else str(answer), sample),
                *(written, ids, reward),
            )

    def _prompt(self, value: Any, column: str, place: str) -> tuple[str, list[int]]:
        tokenizer = self._tokenizer
        if _are_ids(value):
            return str(tokenizer.decode(list(value))), self._ids(value, column, place)
        if _are_messages(value):
            if not tokenizer.chat_template:
                raise DataError(
                    f"{place}: {column} holds chat messages, and the model has no chat template",
                    hint="give prompts as text, or add chat_template.jinja to the model's folder",
                )
            text = tokenizer.apply_chat_template(
                [dict(each) for each in value], tokenize=False, add_generation_prompt=True
            )
            return str(text), list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if not isinstance(value, str):
            raise DataError(
                f"{place} has the prompt {short(value)} in {column}", hint="text, chat messages or token ids"
            )
        ids = list(tokenizer(value)["input_ids"])
        begin = tokenizer.bos_token_id
        if begin is not None and ids[:2] == [begin, begin]:
            ids = ids[1:]
        # A first token has no probability without one before it.
        if not ids and begin is None:
            raise DataError(f"{place} has an empty prompt, and the tokenizer no begin token", hint="give it a prompt")
        return value, ids or [begin]

    def _response(self, value: Any, column: str, place: str) -> tuple[str, list[int]]:
        if _are_ids(value):
            return str(self._tokenizer.decode(list(value), skip_special_tokens=True)), self._ids(value, column, place)
        if _are_messages(value):
            value = value[-1]["content"]
        if not isinstance(value, str):
            raise DataError(f"{place} has the response {short(value)} in {column}", hint="text, a message or token ids")
        return value, list(self._tokenizer(value, add_special_tokens=False)["input_ids"])

    def _ids(self, value: Sequence[int], column: str, place: str) -> list[int]:
        wrong = [each for each in value if not 0 <= each < len(self._tokenizer)]
        if wrong:
            raise DataError(
                f"{place}: {column} has token {wrong[0]}, the tokenizer has {len(self._tokenizer)}",
                hint="the ids are of another tokenizer: give the responses as text",
            )
        return list(value)


def _several(value: Any) -> list[Any]:
    """A response, or the responses that a list has."""
    single = not isinstance(value, list) or _are_ids(value) or _are_messages(value)
    return [value] if single else value


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int for each in value)


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, dict) and isinstance(each.get("content"), str) and "role" in each for each in value)
    )


def _ends_with_assistant(value: Any) -> bool:
    return _are_messages(value) and len(value) > 1 and value[-1]["role"] == "assistant"


def _is_reward(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return all(each is None or (isinstance(each, bool | int | float) and math.isfinite(each)) for each in values)


def _rewards(value: Any, count: int, place: str) -> list[float | None]:
    """One for each response; a single one counts for a single response."""
    values = value if isinstance(value, list) else [value] * (count if value is None else 1)
    if len(values) != count or not _is_reward(values):
        raise DataError(f"{place} has the reward {short(value)} for {count} responses", hint="give a number for each")
    return [None if each is None else float(each) for each in values]
