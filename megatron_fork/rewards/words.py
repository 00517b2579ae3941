"""Answers that are words, and letters of multiple choice."""

from __future__ import annotations

import re

TEXT = re.compile(r"\\(?:text|textrm|textbf|textit|mathrm|mathbf|mbox|textnormal|boldsymbol|bf|rm)\s*\{([^{}]*)\}")
STYLE = re.compile(r"\\(?:left|right|bf|rm|displaystyle|textstyle|large|Large)(?![a-zA-Z])")

CHOICES = "A-J"
LETTER = re.compile(rf"\(?\s*([{CHOICES}])\s*\)?\.?")
SEVERAL = re.compile(rf"\(?[{CHOICES}]\)?(?:(?:\s*(?:,|;|&|\band\b)\s*(?:and\s+)?|\s*)\(?[{CHOICES}]\)?)+\.?")
CHOICE = re.compile(
    rf"(?:(?:the\s+)?(?:correct\s+)?(?:option|choice|answer)\s*(?:is|:)?\s*)?"
    rf"(?:\(\s*([{CHOICES}])\s*\)|([{CHOICES}])\s*(?:[).:]|$))(?P<rest>.*)",
    re.DOTALL | re.IGNORECASE,
)
# What may follow the letter: the content of the choice, which contains a digit or a command.
CONTENT = re.compile(r"(?:\s|\\[ ,;:]|~|\\q?quad)+(?=.*[0-9\\])", re.DOTALL)

WORD = re.compile(r"[^\W\d_]+(?:[-', ]+[^\W_]+)*")
KNOWN_WORDS = frozenset("yes no true false odd even none all both dne".split())
SHORTEST_WORD = 4
# The words of a row mean the same.
SYNONYMS = (
    "undefined|dne|does not exist|not defined|nonexistent",
    "no solution|no solutions|none exist",
    "true|correct",
    "infinitely many|infinite|infinitely many solutions",
)
SAME_AS = {word: row.split("|")[0] for row in SYNONYMS for word in row.split("|")}
SENTENCE = re.compile(r"(yes|no)\s*[,.;:]\s*(?P<rest>.+)", re.DOTALL)
NEGATION = re.compile(r"\b(?:not|cannot|never|impossible|none)\b|n't\b")
DOUBT = frozenset("yes no but or maybe wait false wrong incorrect true unless except perhaps actually".split())
# What data sets have instead of an answer that was not found.
PLACEHOLDERS = frozenset(
    ("notfound", "not found", "[invalid]", "nan", "null", "n/a", "invalid", "unknown answer", "no answer")
)


def shown(text: str) -> str:
    """The text of an answer without typesetting commands."""
    before = None
    text = text.strip()
    for mark in ("**", "$$", "$"):
        if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
            text = text[len(mark) : -len(mark)].strip()
    while before != text:
        before, text = text, TEXT.sub(r"\1", text)
    return " ".join(STYLE.sub("", text).replace("~", " ").replace("\\ ", " ").split()).strip()


def choice_letters(text: str) -> str:
    """The letters A to J that a reference chooses, in order; empty if it does not choose letters.

    One letter, alone or before its content `(B) 12`, or several different ones: `ABD`, `A, B, D`.
    """
    plain = shown(text)
    match = LETTER.fullmatch(plain)
    if match:
        return match[1]
    if SEVERAL.fullmatch(plain):
        letters = re.findall(rf"[{CHOICES}]", plain)
        ordered = sorted(set(letters)) == letters
        return "".join(letters) if ordered and (len(letters) > 2 or plain != "".join(letters)) else ""
    match = CHOICE.fullmatch(plain)
    if match and match["rest"] and match[1] is not None and match[1].isupper():
        return match[1] if CONTENT.match(match["rest"]) else ""
    return ""


def chosen(text: str) -> tuple[str, str]:
    """(letters, content after a single letter) that a response chooses; no letters if it says anything else."""
    plain = shown(text)
    if SEVERAL.fullmatch(plain):
        letters = re.findall(rf"[{CHOICES}]", plain)
        wellformed = len(set(letters)) == len(letters) and plain.count("(") == plain.count(")")
        return ("".join(sorted(letters)), "") if wellformed else ("", "")
    grouped = re.fullmatch(r"\{\s*([^{}]*)\}(?P<rest>.*)", plain, re.DOTALL)
    if grouped:
        plain = grouped[1] + grouped["rest"]
    match = CHOICE.fullmatch(plain)
    if match is None:
        return "", ""
    letter, rest = (match[1] or match[2]).upper(), match["rest"].strip()
    if not rest or rest == ".":
        return letter, ""
    content = CONTENT.match(match["rest"])
    return (letter, rest) if content else ("", "")


def plain_words(text: str, *, any_text: bool = False) -> str:
    r"""The words of an answer that is only words, in one spelling; empty if it is anything else.

    Words of fewer than four letters outside `\text{...}` are products of variables, except the usual ones.
    """
    inside = shown(text)
    marked = TEXT.search(text) is not None
    quoted = re.fullmatch(r"(['\"])(.*)\1", inside.removesuffix("."))
    said = (quoted[2] if quoted else inside.removesuffix(".")).strip().casefold()
    if not WORD.fullmatch(said):
        return ""
    longest = max(len(word) for word in re.findall(r"[^\W\d_]+", said))
    said = re.sub(r"^(?:an?|the) ", "", said)
    return said if any_text or marked or longest >= SHORTEST_WORD or said in KNOWN_WORDS else ""


def same_words(reference: str, claimed: str) -> bool:
    """Whether `claimed` has the words of a reference, or is its yes or no with a reason that does not contradict it."""
    said = plain_words(claimed, any_text=True)
    if SAME_AS.get(said, said) == SAME_AS.get(reference, reference):
        return True
    sentence = SENTENCE.fullmatch(shown(claimed).casefold())
    if sentence is None or sentence[1] != reference or DOUBT & set(re.findall(r"\w+", sentence["rest"])):
        return False
    return (NEGATION.search(sentence["rest"]) is not None) == (reference == "no")
