r"""Words in answers: units behind a value, letters of multiple choice, and answers that are nothing but words."""

from __future__ import annotations

import re

TEXT = re.compile(r"\\(?:text|textrm|mathrm|mbox|operatorname)\s*\{([^{}]*)\}")
# Words that make a statement of what would else be a unit.
SAYING = frozenset("and are but else except if is mod no not nor of or so than then to was wrong".split())
POWER = r"(?:\s*\^\s*\{?\s*(?P<power>[23])\s*\}?|(?P<superscript>[²³]))?"
UNIT = re.compile(
    r"(?P<value>.*[^\s\\])\s*(?:\\text|\\textrm|\\mathrm|\\mbox)\s*\{(?P<unit>[^{}0-9=<>]*)\}" + POWER, re.DOTALL
)
SPELLED_OUT = (
    "mm cm dm km m in ft yd mi inch inches foot feet yard yards mile miles meter meters metre metres g kg mg lb lbs pound "
    "pounds s sec second seconds min minute minutes h hr hour hours day days week weeks month months year years dollar dollars "
    "cent cents euro euros degree degrees unit units mph liter liters litre litres ml L people apples square"
)
PLAIN_UNIT = re.compile(rf"(?P<value>.*[0-9])\s+(?P<unit>(?:{'|'.join(SPELLED_OUT.split())}))" + POWER, re.DOTALL)
LONGEST_UNIT = 5

LETTER = re.compile(r"\(?\s*([A-J])\s*\)?")
CHOICE = re.compile(
    r"(?:(?:option|choice)\s+)?(?:\(\s*([A-J])\s*\)|([A-J])(?:\s*[).:]|$))(?P<rest>.*)", re.DOTALL | re.IGNORECASE
)
WORD = re.compile(r"[^\W\d_]+(?:[-', ]+[^\W_]+)*")
KNOWN_WORDS = frozenset("yes no true false odd even none all both dne".split())
SHORTEST_WORD = 4


def split_unit(text: str) -> tuple[str, str]:
    """(value, unit) of a cleaned answer; the unit is empty where there is none, and has one spelling."""
    for pattern in (UNIT, PLAIN_UNIT):
        match = pattern.fullmatch(text)
        if match is None:
            continue
        words = re.findall(r"[^\W\d_]+", match["unit"].lower())
        if len(words) <= LONGEST_UNIT and not SAYING & set(words):
            power = match["power"] or {"²": "2", "³": "3"}.get(match["superscript"] or "", "")
            return match["value"].strip(), "".join(match["unit"].lower().split()).strip(".~\\") + power
    return text, ""


def chosen_letter(text: str, *, strict: bool = False) -> str:
    """The letter A to J that an answer chooses, upper case; empty where it chooses none, or more than one.

    `strict` admits nothing beside the letter: it tells whether a reference is a choice at all.
    """
    text = TEXT.sub(r"\1", text).strip()
    if strict:
        match = LETTER.fullmatch(text)
        return match[1] if match else ""
    match = CHOICE.fullmatch(text)
    if match is None:
        return ""
    others = re.search(r"\b[A-Ja-j]\b|\bor\b|\band\b", match["rest"])
    return "" if others else (match[1] or match[2]).upper()


def plain_words(text: str, *, any_text: bool = False) -> str:
    r"""The words of an answer that has nothing else, in one spelling; empty where it is anything else.

    Words of fewer than four letters that are not in `\text{...}` are products of variables, but for the usual ones.
    """
    inside = TEXT.sub(r"\1", text)
    shown = " ".join(inside.replace("~", " ").split()).strip(" .\"'").casefold()
    if not WORD.fullmatch(shown):
        return ""
    marked = inside != text
    longest = max(len(word) for word in re.findall(r"[^\W\d_]+", shown))
    shown = re.sub(r"^(?:an?|the) ", "", shown)
    return shown if any_text or marked or longest >= SHORTEST_WORD or shown in KNOWN_WORDS else ""
