r"""Mathematical answers: one grammar parses the whole reference and the whole response, which are then compared exactly.

A response with a single token that is not understood is wrong, whatever its other tokens are. A reference that is not
understood is compared as text. No tolerance is used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from megatron_fork.rewards.characters import WHITE
from megatron_fork.rewards.comparison import compare
from megatron_fork.rewards.extraction import stated_answer, why_none
from megatron_fork.rewards.grammar import parse
from megatron_fork.rewards.rules import Rules
from megatron_fork.rewards.score import NotAValueError, Score, excerpt
from megatron_fork.rewards.tokens import tokenize
from megatron_fork.rewards.values import Items, Scalar, Value
from megatron_fork.rewards.words import PLACEHOLDERS, choice_letters, chosen, plain_words, same_words, shown

# No answer of a problem set is nearly as long; less than a megabyte can make a parser very slow.
MAX_ANSWER_CHARACTERS = 2000
DEFAULT = Rules()
# Every phrase and numeral has letters side by side that are not part of a command.
LETTERS = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}")
COMMA_IN_NUMBER = re.compile(r"[0-9],[0-9]{3}")
# Two choices, if they are not a product or a line from one point to another.
TWO_LETTERS = re.compile(r"A[B-E]|B[C-E]|C[DE]|DE")
# Phrases that have a spelling in symbols.
PHRASES = (
    (re.compile(r"no (?:real )?solutions?", re.IGNORECASE), r"\emptyset"),
    (re.compile(r"(?:all|the|any|every)?\s*(?:set of )?(?:all )?real(?: numbers?|s)", re.IGNORECASE), r"\mathbb{R}"),
    (re.compile(r"(?:all|the|any|every)?\s*(?:set of )?(?:all )?integers?", re.IGNORECASE), r"\mathbb{Z}"),
)
NUMERALS = "zero one two three four five six seven eight nine ten eleven twelve".split()
# A remark about a constant, such as one of integration, which does not change the value.
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
    written = answer.strip().casefold()
    if not written:
        return Score(0.0, "the reference answer is empty", "error")
    if written in PLACEHOLDERS:
        return Score(0.0, f"the reference answer {excerpt(answer)} means that none was found")
    reference = stated_answer(answer) if r"\boxed" in answer else answer
    if not reference:
        return Score(0.0, f"the reference answer {excerpt(answer)} has no closed box")
    right, how = judge(understood(reference), claimed.strip(WHITE), rules)
    return Score(float(right), f"{excerpt(claimed)} {how}")


@dataclass(frozen=True)
class Reference:
    """A reference answer and how it was understood: as letters of choices, words or a value; or `problem` says why not."""

    text: str
    letters: str = ""
    words: str = ""
    value: Value | None = None
    problem: str = ""


@lru_cache(maxsize=4096)
def understood(text: str) -> Reference:
    """The reference answer `text`; cached, since all responses to a question are compared with it."""
    letters = choice_letters(text)
    if letters:
        return Reference(text, letters=letters)
    phrase = _phrase(text)
    words = "" if phrase or _is_value(text) else plain_words(text)
    if words:
        return Reference(text, words=words)
    text = phrase or QUALIFIER.sub("", text)
    try:
        return Reference(text, value=parse(text))
    except NotAValueError as error:
        return Reference(text, problem=str(error))


def judge(reference: Reference, claimed: str, rules: Rules) -> tuple[bool, str]:
    """Whether `claimed` equals the reference, and why, as the rest of a sentence about `claimed`."""
    if claimed.startswith("~") and not claimed.endswith("~"):
        return False, "begins with a tilde, which means 'about'"
    if reference.letters:
        return _judge_choice(reference, claimed, rules)
    if reference.words:
        return same_words(reference.words, claimed), f"is compared with the words {excerpt(reference.words)}"
    if reference.text.isalpha() and _is_the_word(reference.text, claimed):
        return True, "is the word of the reference answer"
    claimed = _phrase(claimed) or QUALIFIER.sub("", claimed)
    if reference.value is None:
        same_text = _normalised(reference.text) == _normalised(claimed)
        return same_text, f"is compared as text, as the reference answer {reference.problem}"
    return judge_value(reference.value, reference.text, claimed, rules)


def judge_value(expected: Value, reference: str, claimed: str, rules: Rules) -> tuple[bool, str]:
    try:
        found = parse(claimed)
        right, how = compare(expected, found, rules)
        if not right and not isinstance(expected, Scalar) and COMMA_IN_NUMBER.search(f"{reference} {claimed}"):
            # `(100,200)` and `100, 200, 300`: a comma before three digits may separate two numbers.
            return compare(parse(reference, grouping=False), parse(claimed, grouping=False), rules)
        return right, how
    except NotAValueError as error:
        same_text = _normalised(reference) == _normalised(claimed)
        return same_text, "is the text of the reference answer" if same_text else str(error)


def _is_the_word(word: str, claimed: str) -> bool:
    """Whether `claimed` is this word of two letters or more, or the two choices that it may be."""
    if len(word) < 2:
        return False
    choices = TWO_LETTERS.fullmatch(word) and chosen(claimed)[0] == word
    return bool(choices) or plain_words(claimed, any_text=True) == word.casefold()


def _judge_choice(reference: Reference, claimed: str, rules: Rules) -> tuple[bool, str]:
    letters = reference.letters
    found, content = chosen(claimed)
    _, expected = chosen(reference.text)
    if found != letters:
        if expected and not found:
            return judge(understood(expected), claimed, rules)
        return False, f"is compared with the choice {letters}"
    if not content:
        return True, f"is the choice {letters}"
    if expected:
        return judge(understood(expected), content, rules)
    try:
        value = parse(content)
    except NotAValueError:
        return False, "has a choice and words about it"
    other = re.search(r"(?<![a-zA-Z\\])[A-Z](?![a-zA-Z])", shown(content))
    several = isinstance(value, Items)
    return other is None and not several, f"is the choice {letters} with its content"


def _is_value(text: str) -> bool:
    """Whether a word is a value: `pi`, `infinity`."""
    return shown(text).casefold() in ("pi", "infinity", "sqrt")


def _phrase(text: str) -> str | None:
    if not LETTERS.search(text):
        return None
    said = shown(text).removesuffix(".").strip()
    if said.lower() in NUMERALS:
        return str(NUMERALS.index(said.lower()))
    return next((symbols for phrase, symbols in PHRASES if phrase.fullmatch(said)), None)


def _normalised(text: str) -> tuple[str, ...] | str:
    """The tokens of a text, or the text itself if it cannot be read as tokens."""
    try:
        texts = [token.text for token in tokenize(text) if token.kind != "blank"]
        single = [place for place in range(len(texts) - 2) if texts[place] == "{" and texts[place + 2] == "}"]
        dropped = {end for place in single for end in (place, place + 2)}
        return tuple(word for place, word in enumerate(texts) if place not in dropped)
    except NotAValueError:
        return text.strip()
