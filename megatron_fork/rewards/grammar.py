r"""The grammar of answers: what `parse` accepts is read from the first token to the last, or it is no value.

    answer    = statement { ("," | ";" | "and" | "or") statement }
    statement = [name "="] side | side relation side [relation side] | variable "\in" side
    side      = set { ("\cup" | "\cap" | "\setminus") set } | ratio | expression [unit]
    set       = "(" | "[" | "]" items ")" | "]" | "[" | "\{" items "\}" | "\{" variable "|" statement "\}" | matrix | "\mathbb{R}"
"""

from __future__ import annotations

from fractions import Fraction

from megatron_fork.rewards.exact import Exact
from megatron_fork.rewards.expressions import Expressions
from megatron_fork.rewards.measures import Measured
from megatron_fork.rewards.nodes import Node, with_sign
from megatron_fork.rewards.tokens import Token, tokenize
from megatron_fork.rewards.unread import NotAValueError
from megatron_fork.rewards.values import (
    Brackets,
    Combined,
    Items,
    Joined,
    Matrix,
    Named,
    NumberSet,
    Ratio,
    Relation,
    Scalar,
    Value,
)

SEPARATORS = (",", ";")
SIGNS = {
    "=": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=", r"\lt": "<", r"\gt": ">", r"\le": "<=", r"\leq": "<=",
    r"\leqslant": "<=", r"\ge": ">=", r"\geq": ">=", r"\geqslant": ">=", r"\ne": "!=", r"\neq": "!=",
}  # fmt: skip
JOINED = {r"\cup": "cup", r"\cap": "cap", r"\setminus": "setminus", r"\backslash": "setminus", r"\bigcup": "cup"}
OPENING = ("(", "[", r"\{", r"\lbrace", r"\langle", r"\lbrack")
CLOSING = (")", "]", r"\}", r"\rbrace", r"\rangle", r"\rbrack")
CLOSED = (r"\}", r"\rbrace", "}")
SPELLED = {r"\lbrack": "[", r"\rbrack": "]", r"\lbrace": r"\{", r"\rbrace": r"\}", r"\langle": "(", r"\rangle": ")"}
SUCH_THAT = ("|", r"\mid", ":", r"\colon", r"\vert", r"\lvert")
MATRICES = frozenset("matrix pmatrix bmatrix Bmatrix smallmatrix array".split())
DETERMINANTS = frozenset(("vmatrix", "Vmatrix"))
EMPTY = (r"\emptyset", r"\varnothing")
ABBREVIATED = frozenset("in sq cu ft yd mi hr hrs min sec lb lbs oz deg yr yrs gal".split())
MAX_ITEMS = 300


def parse(text: str, *, grouping: bool = True) -> Value:
    """The value of an answer; raises NotAValueError where any of it is not of the grammar."""
    tokens = _without_blanks(tokenize(text, grouping=grouping))
    if not tokens:
        raise NotAValueError("is empty")
    try:
        return _whole(Grammar(tokens))
    except NotAValueError as first:
        try:
            return _whole(Grammar(tokens, units_allowed=False))
        except NotAValueError:
            raise first from None


def plain_number(text: str) -> Fraction | None:
    """The exact value of a number written as one, without a unit; None where `text` is anything else."""
    try:
        value = parse(text)
        return Exact({}).value(value.node) if isinstance(value, Scalar) and value.node.is_literal else None
    except NotAValueError:
        return None


def _whole(grammar: Grammar) -> Value:
    value = grammar.answer()
    if grammar.peek() is not None:
        raise NotAValueError(f"is not read on {grammar.here}")
    return value


def _without_blanks(tokens: list[Token]) -> list[Token]:
    kept: list[Token] = []
    for token, after in zip(tokens, [*tokens[1:], None], strict=False):
        if token.text == "." and kept and kept[-1].text in ABBREVIATED and kept[-1].end == token.start:
            continue  # `sq. in.`
        if token.kind != "blank":
            kept.append(token)
        elif after is not None and after.text in ("^", "_", "'", "!"):
            raise NotAValueError("has an empty text with a mark on it")
    return kept


class Grammar(Measured, Expressions):
    """Recursive descent over the tokens of one answer; `joined` is the word between the statements read last."""

    joined: Joined = ","

    def answer(self) -> Value:
        items = self._statements()
        named = _name_before_list(items)
        if named is not None:
            return named
        return items[0] if len(items) == 1 else Items(tuple(items), joined=self.joined)

    def _statements(self) -> list[Value]:
        items: list[Value] = []
        words = set()
        while True:
            items += _both_signs(self._statement())
            if len(items) > MAX_ITEMS:
                raise NotAValueError(f"has more than {MAX_ITEMS} parts")
            separator = self._separator()
            words.add(separator)
            if not separator:
                self.joined = "or" if "or" in words else "and" if "and" in words else ","
                return items

    def _separator(self) -> str:
        """Past `,`, `;`, "and", "or", or a comma and one of the words; which it was, empty for none."""
        found = "," if self.take(*SEPARATORS) is not None else ""
        token = self.peek()
        if token is not None and token.kind == "word" and token.text.lower() in ("and", "or"):
            self.place += 1
            return token.text.lower()
        return found

    def _statement(self) -> Value:
        self.depth += 1
        if self.depth > 12:
            raise NotAValueError("has brackets in brackets in brackets")
        value = self._relation()
        self.depth -= 1
        return value

    def _relation(self) -> Value:
        name = self._name()
        if name is not None:
            return Named(name[0], name[1], self._side())
        sides = [self._side()]
        signs: list[str] = []
        if self.take(r"\in") is not None:
            _check_is_variable(sides[0])
            side = self._side()
            if not isinstance(side, Brackets | Combined | NumberSet) and not (isinstance(side, Items) and side.braces):
                raise NotAValueError("has an element of what is no set")
            return side
        while (token := self.peek()) is not None and token.text in SIGNS and token.kind in ("mark", "command"):
            signs.append(SIGNS[self.next().text])
            sides.append(self._side())
        if not signs:
            return sides[0]
        scalars = [side for side in sides if isinstance(side, Scalar)]
        chain = len(signs) == 2 and (set(signs) <= {"<", "<="} or set(signs) <= {">", ">="})
        if len(scalars) < len(sides) or not (len(signs) == 1 or chain):
            raise NotAValueError("is a chain of relations and not a value")
        return Relation(tuple(scalars), tuple(signs))

    def _side(self) -> Value:
        parts = [self._set()]
        joined = None
        while (token := self.take(*JOINED)) is not None:
            if joined not in (None, JOINED[token.text]):
                raise NotAValueError("joins sets in more than one way")
            joined = JOINED[token.text]
            parts.append(self._set())
        if joined is None:
            return parts[0]
        return Combined(joined, tuple(parts))  # type: ignore[arg-type]

    def _set(self) -> Value:
        token = self.peek()
        if token is None:
            raise NotAValueError("ends where a value would be")
        if token.kind == "begin":
            return self._matrix(self.next())
        if self.take(*EMPTY):
            return Items((), braces=True)
        if self.take(r"\mathbb"):
            letter = self._braced_letter()
            return NumberSet(letter)
        after = self.peek(1)
        if token.text in ("(", "[") and after is not None and after.kind == "begin":
            self.next()
            matrix = self._matrix(self.next())
            self.expect(")" if token.text == "(" else "]")
            return matrix
        if token.kind in ("mark", "command"):
            if token.text in (r"\{", r"\lbrace") or (token.text == "{" and self._is_plain_set()):
                return self._braces()
            if token.text in (*OPENING, "]") and self._is_list(token):
                return self._brackets()
        return self._ratio_or_scalar()

    def _braced_letter(self) -> str:
        braced = self.take("{")
        letter = self.next().text
        if braced:
            self.expect("}")
        if letter not in ("R", "Z", "N", "Q", "C"):
            raise NotAValueError(f"has the set {letter!r}, which is not known")
        return letter

    def _is_plain_set(self) -> bool:
        """Whether the brace here is meant to be seen: `{1, 2}` and `{x | x > 2}`, in plain text."""
        variable, mark = self.peek(1), self.peek(2)
        described = variable is not None and variable.kind == "word" and mark is not None and mark.text in SUCH_THAT
        return described or self._is_list(self.tokens[self.place])

    def _is_list(self, token: Token) -> bool:
        """Whether the bracket here holds a comma of its own, so that it is more than a group."""
        if token.text in ("]", r"\langle"):
            return True
        depth = 0
        for place in range(self.place, len(self.tokens)):
            text = self.tokens[place].text if self.tokens[place].kind in ("mark", "command") else ""
            if text in (*OPENING, "{"):
                depth += 1
            elif text in (*CLOSING, "}"):
                depth -= 1
                if depth == 0:
                    return False
            elif text in SEPARATORS and depth == 1:
                return True
        return False

    def _brackets(self) -> Value:
        opening = self.next()
        outward = opening.text == "]"
        items: list[Value] = []
        while True:
            items += _both_signs(self._statement())
            if not self.take(*SEPARATORS):
                break
        if len(items) < 2 or len(items) > MAX_ITEMS:
            raise NotAValueError("has brackets around what is no list")
        closing = self.next()
        first = "(" if outward else SPELLED.get(opening.text, opening.text)
        last = SPELLED.get(closing.text, closing.text)
        if closing.text == "[" and len(items) == 2:
            last = ")"
        elif last not in (")", "]") or (opening.text == r"\langle") != (closing.text == r"\rangle"):
            raise NotAValueError(f"has the bracket {closing}")
        return Brackets(first, last, tuple(items))

    def _braces(self) -> Value:
        self.next()
        if self.take(*CLOSED):
            return Items((), braces=True)
        place = self.place
        described = self._described()
        if described is not None:
            return described
        self.place = place
        items = self._statements()
        if self.take(*CLOSED) is None:
            raise NotAValueError(f"has a brace that is not closed {self.here}")
        return Items(tuple(items), braces=True)

    def _described(self) -> Value | None:
        r"""`\{x \mid x > 2\}` and `\{x \in \mathbb{R} : x > 2\}`, from behind the brace."""
        variable = self.peek()
        if variable is None or variable.kind != "word" or len(variable.text) != 1:
            return None
        self.next()
        if self.take(r"\in"):
            if not (self.take(r"\mathbb") and self._braced_letter() == "R"):
                return None
        if self.take(*SUCH_THAT) is None:
            return None
        statements = self._statements()
        if self.take(*CLOSED) is None:
            raise NotAValueError(f"has a brace that is not closed {self.here}")
        if len(statements) == 1:
            return statements[0]
        return Items(tuple(statements), joined=self.joined)

    def _matrix(self, begin: Token) -> Value:
        if begin.text not in MATRICES | DETERMINANTS:
            raise NotAValueError(f"has {begin}, which is no matrix")
        rows: list[tuple[Value, ...]] = []
        cells: list[Value] = []
        while True:
            cells.append(self._side())
            if self.take("&"):
                continue
            ended = self.take("\\\\") is None
            self._skip_length()
            rows.append(tuple(cells))
            cells = []
            token = self.peek()
            if token is not None and token.kind == "end" and token.text == begin.text:
                self.next()
                break
            if ended:
                raise NotAValueError(f"has a matrix that is not closed {self.here}")
        if len({len(row) for row in rows}) > 1:
            raise NotAValueError("has a matrix with rows of different lengths")
        return Matrix(tuple(rows), begin.text in DETERMINANTS)

    def _skip_length(self) -> None:
        r"""The `[2pt]` of `\\[2pt]`."""
        texts = [token.text if (token := self.peek(ahead)) is not None else "" for ahead in range(4)]
        if texts[0] == "[" and texts[1].isdigit() and texts[2] in ("pt", "ex", "em", "mm") and texts[3] == "]":
            self.place += 4

    def _ratio_or_scalar(self) -> Value:
        first = self.measured()
        if not self.at(":", r"\colon"):
            return first
        items = [first]
        while self.take(":", r"\colon"):
            items.append(self.measured())
        if any(item.unit for item in items):
            raise NotAValueError("has a ratio with units")
        return Ratio(tuple(item.node for item in items))

    def _name(self) -> tuple[str, frozenset[str]] | None:
        """What stands before the first `=`, where that can be a name; the cursor is behind the `=` then."""
        stop = self.place
        depth = 0
        while stop < len(self.tokens):
            token = self.tokens[stop]
            plain = token.kind in ("mark", "command")
            if plain and token.text in (*OPENING, "{"):
                depth += 1
            elif plain and token.text in (*CLOSING, "}"):
                depth -= 1
            elif plain and token.text == "=" and depth == 0:
                break
            elif depth == 0 and plain and (token.text in SEPARATORS or token.text in SIGNS) or depth < 0:
                return None
            stop += 1
        written = self.tokens[self.place : stop]
        if stop == len(self.tokens) or not _is_name(written):
            return None
        after = self.tokens[stop + 1 :]
        if any(token.text == "=" for token in after[: _statement_length(after)]):
            raise NotAValueError("is a chain of relations and not a value")
        self.place = stop + 1
        name = "".join(token.text for token in written if token.text not in ("{", "}", r"\angle"))
        variable = name.lstrip("\\")
        return name, frozenset((variable,)) if "(" not in name else frozenset()


def _statement_length(tokens: list[Token]) -> int:
    depth = 0
    for place, token in enumerate(tokens):
        if token.kind in ("mark", "command"):
            depth += (token.text in (*OPENING, "{")) - (token.text in (*CLOSING, "}"))
        if depth <= 0 and (token.text in SEPARATORS or token.text in ("and", "or")):
            return place
    return len(tokens)


def _is_name(tokens: list[Token]) -> bool:
    """`x`, `x_1`, `f(x)`, `f'(x)`, `P(A)`, `\\angle ABC`, `(p,q)`, `V_1:V_2`, `\\text{Area}`: no digits but of an index."""
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
        elif token.kind == "command":
            if not token.text[1:].isalpha() or token.text[1:] not in NAME_COMMANDS:
                return False
        elif token.text not in ("_", "{", "}", "(", ")", ",", "'", ":"):
            return False
        inside = token.text in ("(", "_", "{", ",") or (inside and token.text not in (")", "}"))
        before = token.text
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


NAME_COMMANDS = frozenset(
    (
        "alpha beta gamma delta epsilon varepsilon theta lambda mu omega phi varphi psi rho sigma tau Delta Omega angle triangle "
        "ell max min"
    ).split()
)


def _check_is_variable(value: Value) -> None:
    if not isinstance(value, Scalar) or value.unit or value.node.kind != "symbol":
        raise NotAValueError("says of what is no variable that it is in a set")


def _both_signs(value: Value) -> list[Value]:
    r"""`a \pm b` as both of its values."""
    if isinstance(value, Named) and isinstance(value.value, Scalar):
        both = _both_signs(value.value)
        return [value] if len(both) == 1 else [Named(value.name, value.letters, Items(tuple(both)))]
    if not isinstance(value, Scalar):
        return [value]
    either = [node for node in value.node.walk() if node.kind == "either"]
    if not either:
        return [value]
    if len([node for node in either if node.value == Fraction(1)]) > 1:
        raise NotAValueError("has two signs of plus or minus")
    return [Scalar(_signed(value.node, sign), value.unit) for sign in (1, -1)]


def _signed(node: Node, sign: int) -> Node:
    return with_sign(node, sign)


def _name_before_list(items: list[Value]) -> Value | None:
    """`n = 1, 2, 3` names the whole list."""
    first, *rest = items
    if not isinstance(first, Named) or not rest or any(isinstance(item, Named | Relation) for item in rest):
        return None
    return Named(first.name, first.letters, Items((first.value, *rest)))
