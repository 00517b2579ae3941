r"""Mathematical answers: parsed whole by one grammar, the reference and the response alike, and compared exactly within a kind.

A response of which a single token is not understood is no value and wrong, whatever its other tokens are. A reference that is
not understood is compared as text. Nothing is decided by a tolerance.
"""

from __future__ import annotations

import re

from megatron_fork.rewards.comparison import compare
from megatron_fork.rewards.extraction import stated_answer, why_none
from megatron_fork.rewards.grammar import parse
from megatron_fork.rewards.rules import Rules
from megatron_fork.rewards.score import Score, excerpt
from megatron_fork.rewards.tokens import tokenize
from megatron_fork.rewards.unread import NotAValueError
from megatron_fork.rewards.values import Items, Scalar, Value
from megatron_fork.rewards.words import PLACEHOLDERS, choice_letters, chosen, plain_words, same_words, shown

# No answer of a problem set comes near; a parser can be made to crawl with less than a megabyte.
MAX_ANSWER_CHARACTERS = 2000
DEFAULT = Rules()
# Two choices, where they are not a product or a line from one point to another.
TWO_LETTERS = re.compile(r"A[B-E]|B[C-E]|C[DE]|DE")
# Phrases that have a spelling in symbols.
PHRASES = (
    (re.compile(r"no (?:real )?solutions?", re.IGNORECASE), r"\emptyset"),
    (re.compile(r"(?:all|the|any|every)?\s*(?:set of )?(?:all )?real(?: numbers?|s)", re.IGNORECASE), r"\mathbb{R}"),
    (re.compile(r"(?:all|the|any|every)?\s*(?:set of )?(?:all )?integers?", re.IGNORECASE), r"\mathbb{Z}"),
)
NUMERALS = "zero one two three four five six seven eight nine ten eleven twelve".split()
# What is said of a constant of integration and its like, and changes nothing.
QUALIFIER = re.compile(
    r",?\s*\\text\s*\{\s*,?\s*(?:for (?:any|some|every|all|an arbitrary|arbitrary)|where)\s+(?:real |arbitrary |fixed )*"
    r"(?:constants?|numbers?|reals?)\s*\}\s*[a-zA-Z]?\s*$"
)


def verify(response: str, answer: str, rules: Rules = DEFAULT) -> Score:
    r"""Reward 1 if the last `\boxed{...}` of the response, or else its last `Answer: ...` line, equals `answer`."""
    claimed = stated_answer(response)
    if claimed is None:
        return Score(0.0, why_none(response))
    if len(claimed) > MAX_ANSWER_CHARACTERS:
        return Score(0.0, f"the answer has {len(claimed)} characters, more than {MAX_ANSWER_CHARACTERS}")
    if not answer.strip():
        return Score(0.0, "the reference answer is empty")
    if " ".join(answer.casefold().split()) in PLACEHOLDERS:
        return Score(0.0, f"the reference answer {excerpt(answer)} says that none was found")
    right, how = judge(stated_answer(answer) if r"\boxed" in answer else answer, claimed, rules)
    return Score(float(right), f"{excerpt(claimed)} {how}")


def judge(reference: str | None, claimed: str, rules: Rules) -> tuple[bool, str]:
    """Whether `claimed` equals `reference`, and what decided it, as the rest of a sentence about `claimed`."""
    if not reference:
        return False, "has no reference answer"
    if claimed.strip().startswith("~") and not claimed.strip().endswith("~"):
        return False, "begins with a tilde, which says 'about'"
    letters = choice_letters(reference)
    if letters:
        return _judge_choice(reference, letters, claimed, rules)
    words = plain_words(reference)
    phrase = _phrase(reference)
    if words and phrase is None and not _is_value(reference):
        return same_words(words, claimed), f"is compared with the words {excerpt(words)}"
    if TWO_LETTERS.fullmatch(reference) and chosen(claimed)[0] == reference:
        return True, f"is the choices {reference}"
    if reference.isalpha() and len(reference) > 1 and plain_words(claimed, any_text=True) == reference.casefold():
        return True, "is the word of the reference answer"
    reference, claimed = QUALIFIER.sub("", reference), QUALIFIER.sub("", claimed)
    reference, claimed = phrase or reference, _phrase(claimed) or claimed
    try:
        expected = parse(reference)
    except NotAValueError as error:
        text = _normalised(reference) == _normalised(claimed)
        return text, f"is compared as text, as the reference answer {error}"
    return judge_value(expected, reference, claimed, rules)


def judge_value(expected: Value, reference: str, claimed: str, rules: Rules) -> tuple[bool, str]:
    try:
        found = parse(claimed)
        right, how = compare(expected, found, rules)
        if not right and not isinstance(expected, Scalar):
            # `(100,200)` and `100, 200, 300`: a comma before three digits need not be of one number.
            again = parse(reference, grouping=False), parse(claimed, grouping=False)
            if again != (expected, found):
                return compare(*again, rules)
        return right, how
    except NotAValueError as error:
        same_text = _normalised(reference) == _normalised(claimed)
        return same_text, "is the text of the reference answer" if same_text else str(error)


def _judge_choice(reference: str, letters: str, claimed: str, rules: Rules) -> tuple[bool, str]:
    found, content = chosen(claimed)
    _, expected = chosen(reference)
    if found != letters:
        if expected and not found:
            return judge(expected, claimed, rules)
        return False, f"is compared with the choice {letters}"
    if not content:
        return True, f"is the choice {letters}"
    if expected:
        return judge(expected, content, rules)
    try:
        value = parse(content)
    except NotAValueError:
        return False, "has a choice and words about it"
    other = re.search(r"(?<![a-zA-Z\\])[A-Z](?![a-zA-Z])", shown(content))
    several = isinstance(value, Items)
    return other is None and not several, f"is the choice {letters} with its content"


def _is_value(text: str) -> bool:
    """Whether words could be read as values all the same: `pi`, `infinity`."""
    return shown(text).casefold() in ("pi", "infinity", "sqrt")


def _phrase(text: str) -> str | None:
    said = shown(text).removesuffix(".").strip()
    if said.lower() in NUMERALS:
        return str(NUMERALS.index(said.lower()))
    return next((symbols for phrase, symbols in PHRASES if phrase.fullmatch(said)), None)


def _normalised(text: str) -> tuple[str, ...] | str:
    """The tokens of a text, or the text itself where even they cannot be told."""
    try:
        texts = [token.text for token in tokenize(text) if token.kind != "blank"]
        single = [place for place in range(len(texts) - 2) if texts[place] == "{" and texts[place + 2] == "}"]
        dropped = {end for place in single for end in (place, place + 2)}
        return tuple(word for place, word in enumerate(texts) if place not in dropped)
    except NotAValueError:
        return text.strip()
