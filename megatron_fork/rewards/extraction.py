r"""Where a response states its answer: the last `\boxed{...}`, or else the last `Answer: ...` line."""

from __future__ import annotations

import re

BOX_OR_BRACE = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
ANSWER_LINE = re.compile(r"\banswer\** ?:\**([^\n]*)", re.IGNORECASE)


def stated_answer(response: str) -> str | None:
    """The text of the answer, or None where the response states none."""
    boxed = last_boxed(response)
    return last_answer_line(response) if boxed is None else boxed


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` to be closed, found in one pass over `text`."""
    opened: list[re.Match[str]] = []
    content = None
    for token in BOX_OR_BRACE.finditer(text):
        if opens(token):
            opened.append(token)
        elif token[0] == "}" and opened:
            opening = opened.pop()
            if opening[0] != "{":
                content = text[opening.end() : token.start()]
    return content


def last_answer_line(text: str) -> str | None:
    content = None
    for line in ANSWER_LINE.finditer(text):
        content = line[1]
    return content


def braces_balance(text: str) -> bool:
    depth = 0
    for token in BOX_OR_BRACE.finditer(text):
        depth += opens(token) - (token[0] == "}")
        if depth < 0:
            return False
    return depth == 0


def opens(token: re.Match[str]) -> bool:
    return token[0].endswith("{") and token[0] != r"\{"
