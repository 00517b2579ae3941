r"""Finds the answer that a response states: the last `\boxed{...}`, or else the last `Answer: ...` line or a similar one.

A response whose last box or block of thought is not closed was cut off and states no answer: an older box in it is not its
final one. Boxes joined by commas, "and" or "or" are one list. A box that is part of a larger formula (`\frac{\boxed{7}}{9}`) is
not the answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from megatron_fork.rewards.characters import WHITE

BOX = re.compile(r"\\f?boxed\s*\{|\\fbox\s*\{")
BOX_OR_BRACE = re.compile(r"\\f?boxed\s*\{|\\fbox\s*\{|\\.|[{}]", re.DOTALL)
# Without a brace TeX takes one token as the argument, but `\boxed 42` means the whole number.
BARE_BOX = re.compile(r"\\f?boxed\s*(-?[0-9][0-9,]*(?:\.[0-9]+)?|[A-Za-z](?![A-Za-z]))")
JOINED = re.compile(r"[\s$]*(?:,|;|,?\s*\\?(?:text\{)?\s*(?:and|or)\s*\}?)[\s$]*")
# A brace that may be open around a box: a group of its own, or text.
HARMLESS = re.compile(
    r"(?:^|[\s$({&=:,.]|\\(?:text|textbf|mathbf|textit|large|Large|huge|Huge|color\{[a-z]+\}|mbox)\s*)$"
)
# Text around a box that changes or denies its value.
DENIED_BEFORE = re.compile(r"(?:-|[0-9]|\\(?:not|lnot|neg)|(?:\\neq?|≠|\bnot(?: equal to)?|\bisn't|\\not\s*=)[\s$}]*)$")
DENIED_BEHIND = re.compile(
    r"[\^!_/0-9]|\$*\s*(?:is|was|would be|isn't)\s+(?:not|wrong|incorrect|false|impossible)\b|\$*\s*isn't\b"
)
THOUGHT = re.compile(r"<(/?)think>")

ANSWER_LINE = re.compile(r"\banswer\b[^\n:.,;]{0,60}:([^\n]*)", re.IGNORECASE)
SAID = re.compile(r"\b(?:final )?answer is:?[ \t]+([^\n]+)", re.IGNORECASE)
FAREWELL = re.compile(r"\.?\s*I hope (?:it|this) is correct\.?$")
HEADING = re.compile(r"^[\s#*]*final answer[\s:*]*\n+([^\n]+)\s*\Z", re.IGNORECASE | re.MULTILINE)
HASHES = re.compile(r"^####[ \t]+([^\n]+)$", re.MULTILINE)

MAX_BOXES_IN_BOXES = 10
CUT_OFF = "the response is cut off in a box or in its thoughts"


@dataclass(frozen=True)
class Box:
    start: int
    end: int
    content: str


def stated_answer(response: str) -> str | None:
    """The text of the answer, or None if the response states none."""
    thoughts = list(THOUGHT.finditer(response))
    if thoughts and not thoughts[-1][1]:
        return None
    found = boxes(response)
    if found is None:
        return None
    return _joined(found, response) if found else last_answer_line(response)


def why_none(response: str) -> str:
    """Why a response states no answer."""
    thoughts = list(THOUGHT.finditer(response))
    if (thoughts and not thoughts[-1][1]) or (BOX.search(response) and boxes(response) is None):
        return CUT_OFF
    return r"neither \boxed{...} nor an 'Answer:' line"


def boxes(text: str) -> list[Box] | None:
    """The outermost boxes, in one pass over `text`; None if the last one that opens is not closed, or is part of a formula."""
    opened: list[tuple[int, int, bool]] = []  # start, end of the opening, whether it is a box
    outer = 0
    found: list[Box] = []
    around: list[int] = []
    for token in BOX_OR_BRACE.finditer(text):
        written = token[0]
        if opens(token):
            is_box = written != "{"
            if is_box and outer == 0:
                around = [start for start, _, _ in opened]
            opened.append((token.start(), token.end(), is_box))
            outer += is_box
        elif written == "}" and opened:
            start, inside, is_box = opened.pop()
            outer -= is_box
            if is_box and outer == 0:
                found.append(Box(start, token.end(), text[inside : token.start()]))
            elif not is_box and outer == 0 and found and start in around[-8:]:
                inside_formula = HARMLESS.search(text[max(0, start - 24) : start]) is None
                if start < found[-1].start and inside_formula:
                    return None
    if outer:
        return None
    return _with_bare(found, text)


def _with_bare(found: list[Box], text: str) -> list[Box]:
    bare = None
    for match in BARE_BOX.finditer(text):
        bare = match
    if bare is not None and (not found or bare.start() > found[-1].end):
        return [*found, Box(bare.start(), bare.end(), bare[1].rstrip(","))]
    return found


def _joined(found: list[Box], text: str) -> str | None:
    """The content of the last box, or of all that are joined with it."""
    last = len(found) - 1
    first = last
    while first > 0:
        between = text[found[first - 1].end : found[first].start]
        if len(between) > 40 or JOINED.fullmatch(between) is None:
            break
        first -= 1
    contents = list(dict.fromkeys(unwrapped(box.content) for box in found[first:]))
    before = text[max(0, found[first].start - 24) : found[first].start]
    behind = text[found[last].end : found[last].end + 24]
    if DENIED_BEFORE.search(before) or DENIED_BEHIND.match(behind):
        return None
    return ", ".join(contents)


def unwrapped(content: str) -> str:
    r"""`\boxed{7}` as 7, even if it is boxed several times."""
    for _ in range(MAX_BOXES_IN_BOXES):
        content = content.strip(WHITE)
        opening = BOX.match(content)
        inner = boxes(content) if opening else None
        if not inner or len(inner) != 1 or inner[0].end != len(content):
            return content
        content = inner[0].content
    return content


def last_answer_line(text: str) -> str | None:
    """The text after the last "Answer:", "the answer is", `####` or heading "Final answer"."""
    heading = HEADING.search(text)
    if heading:
        return heading[1].strip()
    found = [match for pattern in (ANSWER_LINE, SAID, HASHES) for match in pattern.finditer(text)]
    if not found:
        return None
    last = max(found, key=lambda match: (match.end(), -match.start(1)))
    stated = FAREWELL.sub("", last[1].strip())
    again = SAID.search(stated)
    return (again[1] if again else stated).removesuffix(".").strip("*").strip()


def opens(token: re.Match[str]) -> bool:
    return token[0].endswith("{") and token[0] != r"\{"
