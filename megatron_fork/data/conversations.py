"""Prompts that are chat messages: the user's question, with all other messages before the response."""

from __future__ import annotations

from typing import Any

from megatron_fork.data.answers import short
from megatron_fork.errors import DataError

Message = dict[str, str]
_HINT = 'a prompt is text, or a list of chat messages {"role": "user", "content": "..."} whose last one is the user\'s'


class Conversation(str):
    """A string of the user's messages, by which questions are compared; `messages` has all of them."""

    messages: tuple[Message, ...]

    def __new__(cls, messages: tuple[Message, ...]) -> Conversation:
        made = super().__new__(cls, "\n\n".join(each["content"] for each in messages if each["role"] == "user"))
        made.messages = messages
        return made


def messages_of(question: str) -> list[Message]:
    """A question as chat messages: those that it has, or one message of the user."""
    if isinstance(question, Conversation):
        return [dict(message) for message in question.messages]
    return [{"role": "user", "content": question}]


def whole_text(question: str) -> str:
    """All messages as one text, by which rows are compared; for a bare question the question."""
    if isinstance(question, Conversation):
        return "\x1e".join(f"{message['role']}\x1f{message['content']}" for message in question.messages)
    return question


def question_in(value: Any, place: str) -> str:
    """The question of a prompt column: text, or chat messages; a single message becomes its text. Raises `DataError`."""
    if isinstance(value, list) and value and all(_is_message(entry) for entry in value):
        messages = tuple({"role": entry["role"], "content": entry["content"]} for entry in value)
        if messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
            raise DataError(f"{place} has a prompt that ends with {short(messages[-1])}", hint=_HINT)
        return messages[0]["content"] if len(messages) == 1 else Conversation(messages)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place} has the prompt {short(value)}", hint=_HINT)
    return value


def stripped(question: str, strip: Any) -> str:
    """The question with `strip` applied to the user's last message."""
    if not isinstance(question, Conversation):
        return str(strip(question))
    *before, last = question.messages
    return Conversation((*before, {**last, "content": strip(last["content"])}))


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("role", "content"))
