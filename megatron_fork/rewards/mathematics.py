r"""Mathematical answers: exact where both sides are plain numbers, math-verify for everything else.

math-verify is generous: to it `1+1=7` and `3^{10} \bmod 7` equal 7, `50\%` equals 50, and `8 7` is a mixed number worth
15. What it is wrong about is decided here, before it is asked. It may also compute for ever or eat all memory on a
hostile answer (`10^{10^{10}}`), and its own time-outs need the main thread, so it belongs in a `RewardPool`.
"""

from __future__ import annotations

import re

from megatron_fork.rewards.rational import parse_number
from megatron_fork.rewards.score import RewardError, Score, excerpt

# No answer of a problem set comes near; a parser can be made to crawl with less than a megabyte.
MAX_ANSWER_CHARACTERS = 2000

BOX_OR_BRACE = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
ANSWER_LINE = re.compile(r"\banswer\** ?:\**([^\n]*)", re.IGNORECASE)
RELATION = re.compile(
    r"[=<>≤≥≠≈≡]|\bmod\b|\\(?:[bp]?mod|leq?|geq?|leqslant|geqslant|neq?|equiv|approx|sim|cong|lt|gt)(?![a-zA-Z])"
)
NAMED_VALUE = re.compile(r"[A-Za-z](?:_(?:\w|\{\w+\}))?(?:\([a-z]\))?\s*=\s*(?P<value>.+)", re.DOTALL)
ADJACENT_NUMBERS = re.compile(r"[0-9] +[0-9]")


def verify(response: str, answer: str) -> Score:
    r"""Reward 1 if the last `\boxed{...}` of the response, or else its last `Answer: ...` line, equals `answer`."""
    extracted = last_boxed(response)
    if extracted is None:
        extracted = last_answer_line(response)
    if extracted is None:
        return Score(0.0, r"neither \boxed{...} nor an 'Answer:' line")
    if len(extracted) > MAX_ANSWER_CHARACTERS:
        return Score(0.0, f"the answer has {len(extracted)} characters, more than {MAX_ANSWER_CHARACTERS}")
    reference, claimed = clean(answer), clean(extracted)
    if not reference:
        return Score(0.0, "the reference answer is empty")
    if claimed == reference:
        return Score(1.0, "the same text as the reference answer")

    expected, number = parse_number(reference), parse_number(claimed)
    if expected is not None and number is not None:
        equal, how = number == expected, "as exact numbers"
    else:
        refusal = why_not_a_value(claimed, reference, is_number=expected is not None)
        if refusal:
            return Score(0.0, f"{excerpt(claimed)} {refusal}")
        equal, how = symbolically_equal(reference, claimed), "according to math-verify"
    return Score(float(equal), f"{excerpt(claimed)} {'equals' if equal else 'is not'} {excerpt(reference)} {how}")


def why_not_a_value(claimed: str, reference: str, *, is_number: bool) -> str:
    """What forbids asking math-verify about `claimed`, in words; empty where nothing does.

    Where the reference is an expression, `y = expression` names its value and is let through; every other relation is
    a statement, of which math-verify would take one side and ignore whether it is true.
    """
    if not braces_balance(claimed):
        return "has unbalanced braces"
    if RELATION.search(claimed) and not RELATION.search(reference):
        named = NAMED_VALUE.fullmatch(claimed)
        if is_number or named is None or RELATION.search(named["value"]):
            return "is a relation and not a value"
    if "%" in claimed and is_number:
        return "is not a plain percentage"
    if ADJACENT_NUMBERS.search(claimed) and not ADJACENT_NUMBERS.search(reference):
        return "has two numbers side by side"
    return ""


def symbolically_equal(reference: str, claimed: str) -> bool:
    """Ask math-verify; unbounded in time and memory. Raises RewardError where math-verify is not installed."""
    try:
        import math_verify  # type: ignore[import-untyped]
    except ImportError as error:
        raise RewardError("kind 'math' needs math-verify", hint="pip install 'math-verify[antlr4_13_2]'") from error
    # Only LaTeX: the extractor of plain expressions takes the first number it finds, whatever stands around it.
    extraction = [math_verify.LatexExtractionConfig(boxed_match_priority=0)]
    expected, value = (
        math_verify.parse(rf"\boxed{{{text}}}", extraction, parsing_timeout=None) for text in (reference, claimed)
    )
    return bool(expected and value and math_verify.verify(expected, value, timeout_seconds=None))


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


def clean(text: str) -> str:
    r"""Drop what only typesets: dollar signs, `\( \)`, `\displaystyle`, bold, wide spaces, a box, the full stop."""
    boxed = last_boxed(text)
    if boxed is not None:
        text = boxed
    text = text.replace("\u2212", "-").replace("**", "")
    # The second backslash of a row separator `\\` begins no command.
    text = re.sub(r"\\?\$|(?<!\\)\\(?:[()\[\]]|(?:displaystyle|left|right)(?![a-zA-Z]))", "", text)
    text = re.sub(r"\\[dt]frac(?![a-zA-Z])", r"\\frac", text)
    # A thin space between digits separates thousands and is left to the number parser.
    text = re.sub(r"(?<![\\0-9,])\\[,!]|(?<!\\)\\(?:[,!](?![0-9])|[;:]|(?=\s))|~", " ", text)
    return " ".join(text.split()).removesuffix(".").rstrip()
