r"""Names before an equals sign: `x`, `x_1`, `f(x)`, `f'(x)`, `P(A)`, `\angle ABC`, `(p,q)`, `V_1:V_2`, `\text{Area}`."""

from __future__ import annotations

from itertools import pairwise

from megatron_fork.rewards.tokens import Token

SEPARATORS = (",", ";")
SIGNS = {
    "=": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=", r"\lt": "<", r"\gt": ">", r"\le": "<=", r"\leq": "<=",
    r"\leqslant": "<=", r"\ge": ">=", r"\geq": ">=", r"\geqslant": ">=", r"\ne": "!=", r"\neq": "!=",
}  # fmt: skip
OPENING = ("(", "[", r"\{", r"\lbrace", r"\langle", r"\lbrack")
CLOSING = (")", "]", r"\}", r"\rbrace", r"\rangle", r"\rbrack")


def statement_length(tokens: list[Token]) -> int:
    depth = 0
    for place, token in enumerate(tokens):
        if token.kind in ("mark", "command"):
            depth += (token.text in (*OPENING, "{")) - (token.text in (*CLOSING, "}"))
        if depth <= 0 and (token.text in SEPARATORS or token.text in ("and", "or")):
            return place
    return len(tokens)


def without_inverse(tokens: list[Token]) -> list[Token]:
    r"""The name `f(x)` of `f^{-1}(x)`."""
    if [token.text for token in tokens[1:6]] != ["^", "{", "-", "1", "}"] or len(tokens) < 8:
        return tokens
    return [tokens[0], *tokens[6:]]


def is_name(tokens: list[Token]) -> bool:
    r"""`x`, `x_1`, `f(x)`, `f'(x)`, `P(A)`, `\angle ABC`, `(p,q)`, `V_1:V_2`, `\text{Area}`: digits only in an index."""
    if not tokens or tokens[0].kind == "number":
        return False
    before = ""
    inside = False
    for token in tokens:
        if token.kind == "number":
            if before not in ("_", "{") and (before not in ("(", ",") or tokens[0].text == "("):
                return False
        elif token.kind == "word":
            if token.text in ("e", "i", "pi") and not inside:
                return False
            points = token.text.isupper() and len(token.text) <= MOST_POINTS
            if len(token.text) > 1 and not points and not (token.text in NAMES and len(tokens) == 1) and not inside:
                return False
        elif token.kind == "command":
            if not token.text[1:].isalpha() or token.text[1:] not in NAME_COMMANDS:
                return False
        elif token.text not in ("_", "{", "}", "(", ")", ",", "'", ":"):
            return False
        inside = token.text in ("(", "_", "{", ",") or (inside and token.text not in (")", "}"))
        before = token.text
    if _has_two_words(tokens):
        return False
    first = tokens[0].text
    if tokens[-1].text == ":":
        return False
    applied = first != "(" and any(token.text == "(" for token in tokens)
    separators = {token.text for token in tokens} & {",", ":"}
    if applied and (len(first.lstrip("\\")) > 1 or tokens[-1].text != ")"):
        return False
    if not applied and first != "(" and "," in separators:
        return False
    return first.isalpha() or first[1:].isalpha() or first == "("


def _has_two_words(tokens: list[Token]) -> bool:
    """Whether two words that do not name points are next to each other: `n m`."""
    return any(
        one.kind == other.kind == "word" and not (one.text.isupper() and other.text.isupper())
        for one, other in pairwise(tokens)
    )


# `ABCD` names points; of other words, only these are names by themselves.
MOST_POINTS = 4
NAMES = frozenset(
    "Area area Perimeter perimeter Volume volume Answer answer Speed speed Distance distance Total total".split()
)
NAME_COMMANDS = frozenset(
    (
        "alpha beta gamma delta epsilon varepsilon theta lambda mu omega phi varphi psi rho sigma tau Delta Omega angle "
        "triangle ell max min"
    ).split()
)
