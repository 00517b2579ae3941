r"""An answer as tokens, each of a known kind and at a known position; commands that only typeset give no token.

Numbers are read here, with separators of thousands (`1,000`, `1\,000`, `1{,}000`, `1 000`), repeating decimals
(`0.1\overline{6}`) and bases (`1011_2`). The content of `\text{...}` and similar commands gives tokens that are marked upright,
which distinguishes units, words and letters of choices from products of variables.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from megatron_fork.rewards.characters import canonical
from megatron_fork.rewards.score import NotAValueError

Kind = Literal["number", "word", "command", "mark", "blank", "begin", "end"]
MAX_DIGITS = 2000


@dataclass(frozen=True)
class Token:
    """`text` as written, `value` of a number, `base` of a number with an index; `end` where it ends in the
    canonical text; `spaced`: white space before it.
    """

    kind: Kind
    text: str
    start: int
    end: int
    value: Fraction | None = None
    base: int = 10
    spaced: bool = False
    upright: bool = False

    def __str__(self) -> str:
        return f"{self.text!r} at {self.start}"


SEPARATOR = r"(?:\{,\}|\{\\,\}|,\\!|\\!|\\[,;:\ ]|~|,|[ ])"
GROUPED = rf"[0-9]{{1,3}}(?P<separator>{SEPARATOR})[0-9]{{3}}(?:(?P=separator)[0-9]{{3}})*(?![0-9])"
PATTERN = re.compile(
    rf"""
    (?P<space>(?:\s|\\[,;:!\s]|\\(?:quad|qquad|thinspace|enspace|hfill)(?![a-zA-Z]))+)
  | (?P<style>\\(?:displaystyle|textstyle|scriptstyle|left|right|middle|[bB]igg?[lrm]?|[lL]arge|LARGE|huge|Huge|normalsize
       |small|bf|bfseries|rm|it|limits|nolimits|boldmath)(?![a-zA-Z])(?:\s*\.(?![0-9]))?)
  | (?P<color>\\(?:color|textcolor)\s*(?:\[[a-z]+\])?\{{[a-zA-Z0-9!, ]*\}})
  | (?P<based>(?:[0-9][0-9A-Z]*|[0-9A-F]+(?=_\{{\s*16\s*\}}))_(?:[0-9]|\{{\s*\(?(?P<base>[0-9]{{1,2}}|[a-z]+)\)?\s*\}}
       |\{{\s*\\(?:text|mathrm)\{{\s*(?P<named>[0-9]{{1,2}}|[a-z]+)\s*\}}\s*\}}))
  | (?P<number>(?:{GROUPED}|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)
  | (?P<begin>\\begin\s*\{{(?P<environment>[a-zA-Z]+)\}}(?:\{{[lcr| ]*\}})?)
  | (?P<end>\\end\s*\{{(?P<ended>[a-zA-Z]+)\}})
  | (?P<upright>\\(?:text|textrm|textup|textnormal|mathrm|mbox|hbox|textbf|textit|textsf|emph|operatorname)\s*\{{)
  | (?P<wrapper>\\(?:mathbf|boldsymbol|bm|mathit|mathsf|boxed|fbox|mathnormal)\s*(?=\{{))
  | (?P<command>\\(?:[a-zA-Z]+|.))
  | (?P<word>[A-Za-z]+|[\u4e00-\u9fff]+)
  | (?P<mark>\*\*|[<>!]=|.)
    """,
    re.VERBOSE | re.DOTALL,
)
# The repeating part of a decimal; the two dots of `0.\dot{1}2\dot{3}` mark its first and last digit.
REPEATING = re.compile(
    r"\\(?:overline|bar)\s*(?:\{\s*(?P<bar>[0-9]+)\s*\}|(?P<digit>[0-9]))|"
    r"\\dot\s*\{?\s*(?P<first>[0-9])\s*\}?(?:(?P<between>[0-9]*)\\dot\s*\{?\s*(?P<last>[0-9])\s*\}?)?"
)
SCIENTIFIC = re.compile(r"[eE]([+-]?[0-9]{1,3})(?![0-9.])")
BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "twelve": 12,
         "sixteen": 16}  # fmt: skip
LETTER = re.compile(r"[a-z:]")
# The last characters of a text that has a mark around or after it.
END_MARKS = ".\\$)]*~"
MODULES = re.compile(r"\b(?:np|numpy|math|sympy|sp)\.(?=[a-z])")
# `11 \text{ base } 2`, `11 \text{ (base two)}` and `11_{\text{base }2}`.
BASE_IN_WORDS = re.compile(
    r"([0-9]+)\s*(?:\\text|\\mathrm)\s*\{\s*\(?(?:in )?base\s*(?:([0-9]{1,2}|[a-z]+)\)?\s*\}|\}\s*([0-9]{1,2})(?![0-9]))"
)
BASE_IN_INDEX = re.compile(r"_\s*\{\s*\\text\s*\{\s*base\s*(?:\}\s*([0-9]{1,2})\s*\}|([0-9]{1,2}|[a-z]+)\s*\}\s*\})")
GROUPING_COMMA = re.compile(r"(?<=[0-9]),(?=[0-9])")
VECTOR = re.compile(r"\\(?:mathbf|boldsymbol|bm)\s*\{\s*[ijk]\s*\}")


def tokenize(text: str, *, grouping: bool = True) -> list[Token]:
    """The tokens of an answer; raises NotAValueError. Without `grouping`, a bare comma never separates thousands."""
    text = _undelimited(canonical(text))
    if not grouping:
        text = GROUPING_COMMA.sub(", ", text)
    if LETTER.search(text):
        text = _rewritten(text)
    tokens: list[Token] = []
    _read(text, 0, len(text), False, tokens)
    return tokens


def _rewritten(text: str) -> str:
    """Write bases in words as indices and `{:}` as a colon, and remove the names of modules."""
    text = MODULES.sub("", text.replace("{:}", ":"))
    if "base" in text:
        text = BASE_IN_INDEX.sub(lambda said: f"_{{{said[1] or said[2]}}}", text)
        text = BASE_IN_WORDS.sub(lambda said: f"{said[1]}_{{{said[2] or said[3]}}}", text)
    if VECTOR.search(text):
        raise NotAValueError("has a bold i, j or k, which is a vector")
    return text


def _undelimited(text: str) -> str:
    """Remove the marks of mathematics, of bold and of the end of a sentence around the whole text."""
    text = text.strip()
    before = None if text and (text[-1] in END_MARKS or text[0] == ".") else text
    while text != before:
        before = text
        if text.endswith("\\") and not text.endswith("\\\\"):
            text = text[:-1].strip()
        if text.endswith("..") or text.startswith(".."):
            raise NotAValueError("begins or ends with dots")
        if text.endswith(".") and not text.endswith((r"\.", "..")):
            text = text[:-1].strip()
        for opening, closing in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("~", "~")):
            inside = text[len(opening) : len(text) - len(closing)]
            around = len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing)
            if around and opening not in inside and not inside.endswith("\\"):
                text = inside.strip()
    return text


def _read(text: str, start: int, stop: int, upright: bool, tokens: list[Token]) -> None:
    spaced = False
    while start < stop:
        match = PATTERN.match(text, start, stop)
        assert match is not None  # any character is a mark
        kind, end = match.lastgroup, match.end()
        for name in ("based", "begin", "end", "number"):
            kind = name if match[name] is not None else kind
        if kind in ("space", "style", "color", "wrapper") or match[0] == "~":
            if match[0] == "~" and not tokens:
                raise NotAValueError("begins with a tilde, which means 'about'")
            spaced = spaced or kind == "space" or match[0] == "~"
            start = end
            continue
        if kind == "upright":
            end = _closing(text, end, stop)
            if not text[match.end() : end].replace("~", " ").strip():
                tokens.append(Token("blank", match[0], start, end + 1, spaced=spaced))
            else:
                _read(text, match.end(), end, True, tokens)
            end += 1
        elif kind in ("number", "based"):
            token = _number(text, match, stop, spaced, upright) if kind == "number" else _based(match, spaced)
            tokens.append(token)
            end = token.end
        else:
            spelled = match["environment"] or match["ended"] or match[0]
            tokens.append(Token(kind, spelled, start, end, spaced=spaced, upright=upright))  # type: ignore[arg-type]
        start, spaced = end, False


def _closing(text: str, start: int, stop: int) -> int:
    """Where the brace that was opened before `start` is closed."""
    depth, place = 1, start
    while place < stop:
        letter = text[place]
        if letter == "\\":
            place += 1
        elif letter in "{}":
            depth += 1 if letter == "{" else -1
            if depth == 0:
                return place
        place += 1
    raise NotAValueError("has unbalanced braces")


def _number(text: str, match: re.Match[str], stop: int, spaced: bool, upright: bool) -> Token:
    whole, point, decimals = match["number"].rpartition(".") if "." in match["number"] else (match["number"], "", "")
    digits, start, end = re.sub(r"[^0-9]", "", whole), match.start(), match.end()
    if len(digits) + len(decimals) > MAX_DIGITS:
        raise NotAValueError(f"has a number of more than {MAX_DIGITS} digits")
    value = Fraction(int(digits + decimals or "0"), 10 ** len(decimals)) if decimals else Fraction(int(digits or "0"))
    repeating = REPEATING.match(text, end, stop) if point else None
    if repeating:
        period = (
            repeating["bar"]
            or repeating["digit"]
            or "".join(part or "" for part in repeating.group("first", "between", "last"))
        )
        value += Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(decimals))
        end = repeating.end()
        if REPEATING.match(text, end, stop) or text[end : end + 1].isdigit():
            raise NotAValueError("has digits after the ones that repeat")
    elif point and not decimals and end < stop and text[end] not in " ,;\\}":
        raise NotAValueError("has a point that does not belong to a number")
    scientific = None if repeating else SCIENTIFIC.match(text, end, stop)
    if scientific:
        value *= Fraction(10) ** int(scientific[1])
        end = scientific.end()
    if re.compile(r"\.[0-9]").match(text, end, stop) or (digits == "0" and not point and _letter(text, end, stop)):
        raise NotAValueError(f"has {text[start : start + 12]!r}, which is not a number")
    return Token("number", text[start:end], start, end, value=value, spaced=spaced, upright=upright)


def _letter(text: str, place: int, stop: int) -> bool:
    """Whether `0` begins a number of a programming language here: `0x7`, `0b111`."""
    return re.compile(r"[a-zA-Z]_?[0-9A-Fa-f]").match(text, place, stop) is not None


def _based(match: re.Match[str], spaced: bool) -> Token:
    digits, _, _ = match["based"].partition("_")
    named = match["base"] or match["named"] or match["based"][-1]
    base = BASES.get(named, 0) if named.isalpha() else int(named)
    try:
        value = Fraction(int(digits, base)) if 2 <= base <= 36 else None
    except ValueError:
        value = None
    if value is None:
        raise NotAValueError(f"has {match['based']!r}, which is not a number of that base")
    return Token("number", match[0], match.start(), match.end(), value=value, base=base, spaced=spaced)
