"""Prompts and responses from a file of any framework: texts, chat messages or token ids, one response a row or several."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from megatron_fork.data.answers import short
from megatron_fork.data.rows import READABLE, read_rows
from megatron_fork.data.split import question_key
from megatron_fork.errors import DataError

PROMPTS = ("prompt", "question", "problem", "messages", "input", "query")
RESPONSES = (
    *("response", "responses", "completion", "completions", "output", "outputs", "generation", "generations"),
    "generated_text",
)
REWARDS = ("reward", "rewards", "score", "scores", "correct", "is_correct")
ANSWERS = ("answer", "ground_truth", "reference_answer")
USUAL = {"prompt": PROMPTS, "response": RESPONSES, "reward": REWARDS, "answer": ANSWERS}
_NEEDED = ("prompt", "response")
_WAY_OUT = "name the columns: --columns prompt=NAME,response=NAME"
Message = Mapping[str, Any]


@dataclass(frozen=True)
class GivenResponse:
    """A response that a file holds, in the tokens of the model that is to read it."""

    place: str
    """File and row, for messages."""
    prompt: str
    prompt_id: str
    prompt_tokens: list[int]
    answer: str
    sample: int
    """Place among the responses to the prompt in the whole file, from 0."""
    text: str
    tokens: list[int]
    reward: float | None


def read_responses(
    file: Path, tokenizer: PreTrainedTokenizerBase, columns: Mapping[str, str] | None = None
) -> Iterator[GivenResponse]:
    """Every response of a file, or of a folder of shards in the order of their names.

    Args:
        file: rows with a prompt (text, chat messages, token ids) and its response or a list of responses. Without a column of
            responses, chat messages whose last one is the assistant's are prompt and response.
        tokenizer: texts are read with it, without an end token; chat messages with its template.
        columns: names for `prompt`, `response`, `reward` and `answer` in place of the usual ones; an empty one is none.

    Raises:
        DataError: names the file, row and column that cannot be read, or the columns that might be meant.

    """
    if not (file.is_file() or file.is_dir()):
        raise DataError(f"--responses={file} is not a file or folder", hint=f"readable: {READABLE}")
    reader, chosen = _Reader(tokenizer), None
    for place, row in read_rows(file, field="--responses"):
        chosen = chosen or _choose(row, dict(columns or {}), place)
        yield from reader.row(row, chosen, place)


def columns_named(text: str) -> dict[str, str]:
    """`prompt=NAME,response=NAME` as a mapping, `reward=` and `answer=` for none; raises `DataError`."""
    known = ("prompt", "response", "reward", "answer")
    pairs = [part.partition("=") for part in text.split(",") if part]
    named: dict[str, str] = {}
    for name, equals, column in ((name.strip(), equals, column.strip()) for name, equals, column in pairs):
        if name not in known or not equals or not (column or name in ("reward", "answer")):
            raise DataError(f"--columns={text}: {name!r} is none of {', '.join(known)}", hint=_WAY_OUT)
        if name in named or (column and column in named.values()):
            raise DataError(f"--columns={text}: {name}={column} says something twice", hint=_WAY_OUT)
        named[name] = column
    return named


def _choose(row: Mapping[str, Any], given: dict[str, str], place: str) -> dict[str, str]:
    """Which column is what, by the first row; those that are given are taken as they are."""
    for column in filter(None, given.values()):
        if column not in row:
            raise DataError(f"{place} has no column {column}; it has {', '.join(row)}", hint=_WAY_OUT)
    found = dict(given)
    for kind, usual in USUAL.items():
        present = [name for name in usual if row.get(name) is not None]
        if kind in found or not present:
            continue
        if len(present) > 1:
            way_out = _WAY_OUT if kind in _NEEDED else f"--columns {kind}={present[0]}, or {kind}= for none"
            raise DataError(f"{place}: the {kind} may be in {' or '.join(present)}", hint=way_out)
        found[kind] = present[0]
    if "prompt" not in found or ("response" not in found and not _ends_with_assistant(row[found["prompt"]])):
        missing = "prompt" if "prompt" not in found else "response"
        raise DataError(f"{place} has no {missing} column that is known; it has {', '.join(row)}", hint=_WAY_OUT)
    for kind in ("reward", "answer"):  # one that is empty in the first row may not be in later ones
        empty = [name for name in USUAL[kind] if name in row]
        if kind not in found and len(empty) == 1:
            found[kind] = empty[0]
    return found


class _Reader:
    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._samples: Counter[str] = Counter()

    def row(self, row: Mapping[str, Any], columns: Mapping[str, str], place: str) -> Iterator[GivenResponse]:
        for name in filter(None, columns.values()):
            if name not in row:
                raise DataError(f"{place} has no column {name}; it has {', '.join(row)}", hint=_WAY_OUT)
        for kind in ("reward", "answer"):
            late = [name for name in USUAL[kind] if kind not in columns and row.get(name) is not None]
            if late:
                raise DataError(
                    f"{place} has the column {late[0]}, which the first row has not",
                    hint=f"give every row one, null where there is none; or --columns {kind}= for none",
                )
        asked = row[columns["prompt"]]
        if "response" in columns:
            responses = _several(row[columns["response"]], columns["response"], place)
        else:
            if not _ends_with_assistant(asked):
                raise DataError(
                    f"{place}: {columns['prompt']} does not end with the assistant's message", hint=_WAY_OUT
                )
            asked, responses = asked[:-1], [asked[-1]["content"]]
        text, tokens = self._prompt(asked, columns["prompt"], place)
        prompt_id = f"{question_key(_question(asked, text)):016x}"
        rewards = _rewards(row.get(columns.get("reward", "")), len(responses), columns.get("reward", ""), place)
        answer = _text_of(row.get(columns.get("answer", "")))
        for response, reward in zip(responses, rewards, strict=True):
            written, ids = self._response(response, columns.get("response", ""), place)
            sample = self._samples[prompt_id]
            self._samples[prompt_id] += 1
            yield GivenResponse(place, text, prompt_id, tokens, answer, sample, written, ids, reward)

    def _prompt(self, value: Any, column: str, place: str) -> tuple[str, list[int]]:
        tokenizer = self._tokenizer
        if _are_ids(value):
            ids = self._ids(value, column, place)
            return str(tokenizer.decode(ids)), ids
        if _are_messages(value):
            if not tokenizer.chat_template:
                raise DataError(
                    f"{place}: {column} holds chat messages, and the model has no chat template",
                    hint="give prompts as text, or add chat_template.jinja to the model's folder",
                )
            text = tokenizer.apply_chat_template(
                [dict(each) for each in value], tokenize=False, add_generation_prompt=True
            )
            text = _valid(str(text), column, place)
            return text, list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if not isinstance(value, str):
            raise DataError(
                f"{place} has the prompt {short(value)} in {column}", hint="text, chat messages or token ids"
            )
        ids = list(tokenizer(_valid(value, column, place))["input_ids"])
        begin = tokenizer.bos_token_id
        if begin is not None and ids[:2] == [begin, begin]:
            ids = ids[1:]
        # A first token has no probability without one before it.
        if not ids and begin is None:
            raise DataError(f"{place} has an empty prompt, and the tokenizer no begin token", hint="give it a prompt")
        return value, ids or [begin]

    def _response(self, value: Any, column: str, place: str) -> tuple[str, list[int]]:
        if _are_ids(value):
            ids = self._ids(value, column, place)
            return str(self._tokenizer.decode(ids, skip_special_tokens=True)), ids
        if _are_messages(value):
            if len(value) > 1 or value[0]["role"] != "assistant":
                roles = ", ".join(str(each["role"]) for each in value)
                raise DataError(
                    f"{place}: {column} has messages of {roles[:100]}, not one of the assistant",
                    hint="a response is the last message; those before it belong to the prompt",
                )
            value = value[0]["content"]
        if not isinstance(value, str):
            raise DataError(f"{place} has the response {short(value)} in {column}", hint="text, a message or token ids")
        return value, list(self._tokenizer(_valid(value, column, place), add_special_tokens=False)["input_ids"])

    def _ids(self, value: Sequence[int], column: str, place: str) -> list[int]:
        wrong = [each for each in value if not 0 <= each < len(self._tokenizer)]
        if wrong:
            raise DataError(
                f"{place}: {column} has token {wrong[0]}, the tokenizer has {len(self._tokenizer)}",
                hint="the ids are of another tokenizer: give the responses as text",
            )
        return list(value)


def _several(value: Any, column: str, place: str) -> list[Any]:
    """A response, or the responses that a list has."""
    if isinstance(value, list) and not value:
        raise DataError(
            f"{place} has an empty list in {column}, which may be no response or one without tokens",
            hint='leave the row out, or write an empty text: ""',
        )
    single = not isinstance(value, list) or _are_ids(value) or _are_messages(value)
    return [value] if single else value


def _valid(text: str, column: str, place: str) -> str:
    """The text, if UTF-8 can hold it: JSON may have half of a character, of which no tokenizer makes tokens."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place}: {column} has half of a character, {text[error.start]!r}",
                hint="write the text as UTF-8 again",
            ) from error
    return text


def _question(asked: Any, text: str) -> str:
    """What is the same whatever the template: the user's messages, or the prompt."""
    if not _are_messages(asked):
        return text
    return "\n\n".join(each["content"] for each in asked if each["role"] == "user") or text


def _text_of(answer: Any) -> str:
    """An answer as text; lists and objects as JSON."""
    if isinstance(answer, list | dict):
        return json.dumps(answer, ensure_ascii=False, default=str)
    return "" if answer is None else str(answer)


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


def _rewards(value: Any, count: int, column: str, place: str) -> list[float | None]:
    """One for each response; a single one counts for a single response."""
    values = value if isinstance(value, list) else [value] * (count if value is None else 1)
    rewards = [_number(each) for each in values]
    if len(values) != count or any(math.isnan(each) for each in rewards if each is not None):
        raise DataError(
            f"{place} has the reward {short(value)} in {column} for {count} responses",
            hint="give a finite number for each, or null; name another column: --columns reward=NAME, or reward= for none",
        )
    return rewards


def _number(value: Any) -> float | None:
    """A reward, also as text, as a CSV file has it; NaN for what is no finite number."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        value = {"true": 1.0, "false": 0.0}.get(value.strip().lower(), value)
    try:
        number = float(value) if isinstance(value, int | float | Decimal | str) else math.nan
    except (ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan
