r"""Mathematical answers: exact where both sides are plain numbers, part by part where they have parts, else math-verify.

math-verify is generous: to it `1+1=7` and `3^{10} \bmod 7` equal 7, `50\%` equals 50, `52_8` equals `52_7`, 1.41421356237 the
root of 2, and "no" equals "on". What it is wrong about is decided here, before it is asked. It may also compute for ever or
eat all memory on a hostile answer (`10^{10^{10}}`), and its own time-outs need the main thread, so it belongs in a
`RewardPool`; what would cost most is refused at once.
"""

from __future__ import annotations

import re
from typing import Any

from megatron_fork.rewards.cleaning import clean
from megatron_fork.rewards.extraction import braces_balance, stated_answer
from megatron_fork.rewards.forms import MAX_ITEMS, Form, parse_form, ungrouped
from megatron_fork.rewards.rational import parse_number
from megatron_fork.rewards.score import RewardError, Score, excerpt
from megatron_fork.rewards.words import chosen_letter, plain_words, split_unit

# No answer of a problem set comes near; a parser can be made to crawl with less than a megabyte.
MAX_ANSWER_CHARACTERS = 2000
MAX_NESTING = 30
# `7^{10^9}`, `(10^8)!` and their like: the value itself is what costs.
LARGE = r"\{?\s*\(?\s*(?:[0-9]{6,}|[0-9]+\s*\^)"
COSTLY = re.compile(
    rf"\^\s*{LARGE}|\^\s*\{{[^{{}}^]*\^\s*\{{[^{{}}^]*\^|[0-9]{{5,}}\s*!|\^\s*\{{?[^{{}}]*\}}?\s*\)\s*!|!\s*!|!\s*\)\s*!"
    r"|\\binom\s*\{\s*(?:[0-9]{5,}|[0-9]+\s*\^)|[)\]}]\s*\^\s*(?:\{\s*[0-9]{3,}|\{[^{}]*\}\s*\^)|(?:\\sum|\\prod|\\int|\\lim)[^a-zA-Z]"
)

RELATION = re.compile(
    r"[=<>≤≥≠≈≡→⇒]|\bmod\b|\\(?:[bp]?mod|leq?|geq?|leqslant|geqslant|neq?|equiv|approx|sim|simeq|cong|lt|gt|to|rightarrow|"
    r"Rightarrow|implies|iff|mapsto|longrightarrow|mid)(?![a-zA-Z])"
)
NAMED_VALUE = re.compile(r"[A-Za-z](?:_(?:\w|\{\w+\}))?(?:\([a-z]\))?\s*=\s*(?P<value>[^=]+)", re.DOTALL)
ADJACENT_NUMBERS = re.compile(r"(?<![_0-9])[0-9]+ +[0-9]")  # but `\log_2 8`
LETTERS = re.compile(r"(?<![a-zA-Z\\])[a-zA-Z]+")  # of no command
CONSTANTS = frozenset(("e", "i"))
WORDS = re.compile(r"\\(?:text|mathrm|mbox|operatorname)")

IMAGINARY_UNIT = "i"
# Digits that math-verify compares of two inexact values; its default of 6 takes 1.414214 for the root of 2.
DIGITS = 20


def verify(response: str, answer: str) -> Score:
    r"""Reward 1 if the last `\boxed{...}` of the response, or else its last `Answer: ...` line, equals `answer`."""
    extracted = stated_answer(response)
    if extracted is None:
        return Score(0.0, r"neither \boxed{...} nor an 'Answer:' line")
    if len(extracted) > MAX_ANSWER_CHARACTERS:
        return Score(0.0, f"the answer has {len(extracted)} characters, more than {MAX_ANSWER_CHARACTERS}")
    reference, claimed = clean(answer), clean(extracted)
    if not reference:
        return Score(0.0, "the reference answer is empty")
    equal, how = compare(reference, claimed)
    return Score(float(equal), f"{excerpt(claimed)} {how}")


def compare(reference: str, claimed: str) -> tuple[bool, str]:
    """Whether two cleaned answers are equal, and what decided it, as the rest of a sentence about `claimed`."""
    reference, claimed = ungrouped(reference), ungrouped(claimed)
    if claimed == reference:
        return True, "is the text of the reference answer"
    if not braces_balance(claimed):
        return False, "has unbalanced braces"
    letter = chosen_letter(reference, strict=True)
    if letter:
        return chosen_letter(claimed) == letter, f"is compared with the choice {letter}"
    words = plain_words(reference)
    if words:
        return plain_words(claimed, any_text=True) == words, f"is compared with the words {excerpt(words)}"
    expected, found = (_form_unless_number(side) for side in (reference, claimed))
    if expected is None and found is None:
        return compare_values(reference, claimed)
    if expected is None or found is None or not expected.matches(found):
        return False, f"is {found or 'one value'} and not {expected or 'one value'}"
    return compare_forms(expected, found)


def compare_forms(expected: Form, found: Form) -> tuple[bool, str]:
    if max(len(expected.items), len(found.items)) > MAX_ITEMS:
        return expected == found, f"has more than {MAX_ITEMS} parts and is compared as text"
    if expected.ordered:
        if len(expected.items) != len(found.items):
            return False, f"has {len(found.items)} parts and not {len(expected.items)}"
        for number, (one, other) in enumerate(zip(expected.items, found.items, strict=True), start=1):
            equal, how = compare(one, other)
            if not equal:
                return False, f"differs in part {number}, which {how}"
        return True, "equals the reference answer part by part"
    left, right = list(expected.items), list(found.items)
    if "set" in (expected.kind, found.kind):
        left, right = _distinct(left), _distinct(right)
    if len(left) != len(right):
        return False, f"has {len(right)} parts and not {len(left)}"
    for one in left:
        place = next((place for place, other in enumerate(right) if compare(one, other)[0]), None)
        if place is None:
            return False, f"has no part that equals {excerpt(one)}"
        del right[place]
    return True, "has the parts of the reference answer"


def compare_values(reference: str, claimed: str) -> tuple[bool, str]:
    """Two answers without parts: by exact arithmetic, or by math-verify where it may be asked."""
    reference, unit = split_unit(reference)
    claimed, claimed_unit = split_unit(claimed)
    if unit and claimed_unit and unit != claimed_unit:
        return False, f"is in {excerpt(claimed_unit)} and not in {excerpt(unit)}"
    expected, number = parse_number(reference), parse_number(claimed)
    if expected is not None and number is not None:
        return number == expected, f"is compared with {excerpt(reference)} as exact numbers"
    named = NAMED_VALUE.fullmatch(reference)
    if named and parse_number(named["value"]) is not None and RELATION.search(claimed) is None:
        return compare_values(named["value"], claimed)  # `x = 5` asks for 5
    refusal = why_not_a_value(claimed, reference, is_number=expected is not None)
    if refusal:
        return False, refusal
    return symbolically_equal(reference, claimed), f"is compared with {excerpt(reference)} by math-verify"


def why_not_a_value(claimed: str, reference: str, *, is_number: bool) -> str:
    """What forbids asking math-verify about `claimed`, as the rest of a sentence; empty where nothing does.

    Where the reference is an expression, `y = expression` names its value and is let through; every other relation is
    a statement, of which math-verify would take one side and ignore whether it is true.
    """
    if RELATION.search(claimed) and not RELATION.search(reference):
        named = NAMED_VALUE.fullmatch(claimed)
        if is_number or named is None or RELATION.search(named["value"]):
            return "is a relation and not a value"
    if is_number and "%" in claimed:
        return "is not a plain percentage"
    if is_number and any(name not in CONSTANTS for name in LETTERS.findall(claimed)):
        return "has variables, and the answer is a number"
    if ADJACENT_NUMBERS.search(claimed) and not ADJACENT_NUMBERS.search(reference):
        return "has two numbers side by side"
    if r"\\" in claimed and r"\\" not in reference:
        return "has several lines"
    if WORDS.search(claimed) and not WORDS.search(reference):
        return "has words in it"
    if claimed.count("|") % 2:
        return "has an unpaired bar"
    if _deepest(claimed) > MAX_NESTING:
        return f"is nested more than {MAX_NESTING} deep"
    if COSTLY.search(claimed) and not COSTLY.search(reference):
        return "would cost more to evaluate than an answer may"
    return ""


def symbolically_equal(reference: str, claimed: str) -> bool:
    """Ask math-verify; unbounded in time and memory. Raises RewardError where math-verify is not installed."""
    try:
        import math_verify  # type: ignore[import-untyped]
        import sympy  # type: ignore[import-untyped]
    except ImportError as error:
        raise RewardError("kind 'math' needs math-verify", hint="pip install 'math-verify[antlr4_13_2]'") from error
    # Only LaTeX: the extractor of plain expressions takes the first number it finds, whatever stands around it.
    extraction = [math_verify.LatexExtractionConfig(boxed_match_priority=0)]
    sides = []
    for text in (reference, claimed):
        parsed = math_verify.parse(rf"\boxed{{{text}}}", extraction, parsing_timeout=None)
        # Without a value, math-verify goes on to compare texts, which has been done better by now.
        values = [value for value in parsed if isinstance(value, sympy.Basic)]
        sides.append([_with_imaginary_unit(value, sympy.I) for value in values])
    expected, value = sides
    if not expected or not value:
        return False
    return bool(
        math_verify.verify(expected, value, timeout_seconds=None, float_rounding=DIGITS, numeric_precision=DIGITS + 10)
    )


def _form_unless_number(text: str) -> Form | None:
    """The parts of `text`; `1,250` has none."""
    return parse_form(text) if parse_number(split_unit(text)[0]) is None else None


def _with_imaginary_unit(value: Any, imaginary: Any) -> Any:
    """`value` with the parser's symbol i, of whatever assumptions, read as the root of -1."""
    return value.subs({symbol: imaginary for symbol in value.free_symbols if symbol.name == IMAGINARY_UNIT})


def _distinct(items: list[str]) -> list[str]:
    kept: list[str] = []
    for item in items:
        if not any(compare(item, other)[0] for other in kept):
            kept.append(item)
    return kept


def _deepest(text: str) -> int:
    depth = deepest = 0
    for letter in text:
        depth += (letter in "({[") - (letter in ")}]")
        deepest = max(deepest, depth)
    return deepest
