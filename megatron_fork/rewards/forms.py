r"""Answers that are made of several: lists, sets, points, intervals, unions and matrices.

A form is recognised by its brackets alone, so that `[1,2)` never equals `[1,2]`, nor `(1,2)` the set `\{1,2\}`; its items
are compared one by one as answers of their own. Inequalities of one variable are intervals: `1 \le x < 2` is `[1,2)`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

MAX_ITEMS = 100

MATRIX = re.compile(
    r"\\begin\{(?P<name>[pbvBV]?matrix|array)\}(?:\{[lcr| ]*\})?(?P<body>.*)\\end\{(?P=name)\}", re.DOTALL
)
ROW_END = re.compile(r"\\\\(?:\[[^\]]*\])?")
EMPTY_SET = re.compile(r"\\emptyset|\\varnothing|\\\{ ?\\\}|∅")
OPENING = re.compile(r"(?:\\\{|[(\[])")
CLOSING = {r"\}": r"\{", ")": "(", "]": "[", "}": "{"}
TOKEN = re.compile(r"\\text(?:rm)?\s*\{\s*(?:and|or)\s*\}|\\[a-zA-Z]+|\\.|\b(?:and|or)\b|.", re.DOTALL)
SEPARATOR = re.compile(r"[,;]|\b(?:and|or)\b")
PLUS_MINUS = re.compile(r"(?P<before>[^±]*?)\s*(?:\\pm(?![a-zA-Z])|±)\s*(?P<after>[^±]+)", re.DOTALL)

VARIABLE = r"[a-zA-Z]"
LESS = r"(?:<|\\lt(?![a-zA-Z])|≤|\\leq?(?![a-zA-Z])|\\leqslant(?![a-zA-Z]))"
MORE = r"(?:>|\\gt(?![a-zA-Z])|≥|\\geq?(?![a-zA-Z])|\\geqslant(?![a-zA-Z]))"
BOUND = r"[^<>≤≥=]+?"
MEMBER = re.compile(rf"{VARIABLE}\s*(?:\\in(?![a-zA-Z])|∈)\s*(?P<set>.+)", re.DOTALL)
BETWEEN = re.compile(rf"(?P<low>{BOUND})\s*(?P<first>{LESS})\s*{VARIABLE}\s*(?P<second>{LESS})\s*(?P<high>{BOUND})")
ONE_SIDED = re.compile(rf"{VARIABLE}\s*(?P<relation>{LESS}|{MORE})\s*(?P<bound>{BOUND})")
ONE_SIDED_FLIPPED = re.compile(rf"(?P<bound>{BOUND})\s*(?P<relation>{LESS}|{MORE})\s*{VARIABLE}")
STRICT = re.compile(r"<|>|\\[lg]t")

Kind = Literal["list", "set", "bracketed", "union", "matrix", "determinant"]


@dataclass(frozen=True)
class Form:
    """`items` in the order of the text; `shape` tells forms of one kind apart: brackets, or the lengths of the rows."""

    kind: Kind
    items: tuple[str, ...]
    shape: str = ""

    @property
    def ordered(self) -> bool:
        return self.kind in ("bracketed", "matrix", "determinant")

    def matches(self, other: Form) -> bool:
        """Whether the two can be equal at all; a set may be written without its braces."""
        if {self.kind, other.kind} == {"set", "list"}:
            return True
        return (self.kind, self.shape) == (other.kind, other.shape)

    def __str__(self) -> str:
        names = {"bracketed": f"{self.shape[:1]}...{self.shape[1:]}"}
        return f"{names.get(self.kind, self.kind)} of {len(self.items)}"


def parse_form(text: str) -> Form | None:
    """The parts of a cleaned answer, or None where it is a single value."""
    text = as_interval(text.strip())
    if EMPTY_SET.fullmatch(text):
        return Form("set", ())
    matrix = MATRIX.fullmatch(text)
    if matrix and r"\begin" not in matrix["body"]:
        return _matrix(matrix["name"], matrix["body"])
    pieces = split(text, r"\cup")
    if len(pieces) > 1:
        return Form("union", tuple(pieces))
    items = split(text, ",")
    if len(items) > 1:
        intervals = [as_interval(item) for item in items]
        if all(interval != item for interval, item in zip(intervals, items, strict=True)):
            return Form("union", tuple(intervals))  # `x < 1 or x > 2`
        return Form("list", _expanded(items))
    bracketed = _bracketed(text)
    expanded = _expanded([text])
    return Form("list", expanded) if bracketed is None and len(expanded) > 1 else bracketed


def ungrouped(text: str) -> str:
    """Without parentheses or braces around the whole, where they only group."""
    while len(text) > 1 and text[0] + text[-1] in ("()", "{}") and _closes_at_end(text):
        inside = text[1:-1].strip()
        if text[0] == "(" and len(split(inside, ",")) > 1:
            return text
        text = inside
    return text


def as_interval(text: str) -> str:
    r"""`x \in S` as S, and an inequality of one variable as its interval; anything else as it is."""
    member = MEMBER.fullmatch(text)
    if member:
        return member["set"].strip()
    between = BETWEEN.fullmatch(text)
    if between:
        left = "(" if STRICT.match(between["first"]) and "e" not in between["first"] else "["
        right = ")" if STRICT.match(between["second"]) and "e" not in between["second"] else "]"
        return f"{left}{between['low'].strip()},{between['high'].strip()}{right}"
    one = ONE_SIDED.fullmatch(text)
    flipped = None if one else ONE_SIDED_FLIPPED.fullmatch(text)
    found = one or flipped
    if not found:
        return text
    relation, bound = found["relation"], found["bound"].strip()
    strict = relation in ("<", ">", r"\lt", r"\gt")
    below = bool(re.match(LESS, relation)) != (flipped is not None)
    if below:
        return rf"(-\infty,{bound}{')' if strict else ']'}"
    return rf"{'(' if strict else '['}{bound},\infty)"


def split(text: str, at: str) -> list[str]:
    r"""Cut `text` at `,` (also `;`, "and", "or") or `\cup` outside of all brackets; brackets need not be of a kind."""
    pieces, depth = [""], 0
    for token in TOKEN.finditer(text):
        word = token[0]
        if word in ("(", "[", "{", r"\{", r"\begin"):
            depth += 1
        elif word in (")", "]", "}", r"\}", r"\end"):
            depth -= 1
        separates = word == at if at == r"\cup" else SEPARATOR.search(word) is not None
        if separates and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += word
    pieces = [piece.strip() for piece in pieces]
    return [piece for piece in pieces if piece] if at == "," else pieces


def _matrix(name: str, body: str) -> Form:
    rows = [[cell.strip() for cell in row.split("&")] for row in ROW_END.split(body) if row.strip()]
    kind: Kind = "determinant" if name in ("vmatrix", "Vmatrix") else "matrix"
    return Form(kind, tuple(cell for row in rows for cell in row), " ".join(str(len(row)) for row in rows))


def _bracketed(text: str) -> Form | None:
    opening = OPENING.match(text)
    if not opening or not _closes_at_end(text):
        return None
    is_set = opening[0] == r"\{"
    inside = text[len(opening[0]) : -2 if is_set else -1]
    items = split(inside, ",")
    if is_set:
        described = any(mark in inside for mark in (r"\mid", "|", ":"))
        return None if described else Form("set", _expanded(items))
    if len(items) < 2 and opening[0] == "(":
        return None  # parentheses that only group
    return Form("bracketed", tuple(items), opening[0] + text[-1])


def _closes_at_end(text: str) -> bool:
    """Whether the first bracket of `text` is closed by its last character; `(` and `[` may close each other."""
    depth = 0
    tokens = list(TOKEN.finditer(text))
    for number, token in enumerate(tokens):
        if token[0] in ("(", "[", "{", r"\{"):
            depth += 1
        elif token[0] in CLOSING:
            depth -= 1
            if depth == 0:
                last = number == len(tokens) - 1
                of_set = (tokens[0][0] == r"\{") == (token[0] == r"\}")
                of_group = (tokens[0][0] == "{") == (token[0] == "}")
                return last and of_set and of_group
    return False


def _expanded(items: list[str]) -> tuple[str, ...]:
    r"""Every `a \pm b` as `a+b` and `a-b`."""
    expanded: list[str] = []
    for item in items:
        both = PLUS_MINUS.fullmatch(item)
        if both is None or r"\pm" in both["after"] or r"\mp" in item:
            expanded.append(item)
        else:
            expanded += [f"{both['before']}{sign}{both['after']}".lstrip("+") for sign in "+-"]
    return tuple(expanded)
