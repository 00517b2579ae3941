r"""Brackets, braces and matrices: points, intervals, sets by their elements or by a condition."""

from __future__ import annotations

from abc import ABC, abstractmethod

from megatron_fork.rewards.measures import Measured
from megatron_fork.rewards.names import CLOSING, OPENING, SEPARATORS
from megatron_fork.rewards.nodes import with_sign
from megatron_fork.rewards.score import NotAValueError
from megatron_fork.rewards.tokens import Token
from megatron_fork.rewards.values import Brackets, Items, Joined, Matrix, Named, NumberSet, Ratio, Scalar, Value

SPELLED = {r"\lbrack": "[", r"\rbrack": "]", r"\lbrace": r"\{", r"\rbrace": r"\}", r"\langle": "(", r"\rangle": ")"}
SUCH_THAT = ("|", r"\mid", ":", r"\colon", r"\vert", r"\lvert")
MATRICES = frozenset("matrix pmatrix bmatrix Bmatrix smallmatrix array".split())
DETERMINANTS = frozenset(("vmatrix", "Vmatrix"))
EMPTY = (r"\emptyset", r"\varnothing")
CLOSED = (r"\}", r"\rbrace", "}")
MAX_ITEMS = 300


class Bracketed(Measured, ABC):
    """`joined` is the word between the last statements that were read; a subclass reads statements."""

    joined: Joined = ","

    @abstractmethod
    def statements(self) -> list[Value]: ...

    @abstractmethod
    def statement(self) -> Value: ...

    @abstractmethod
    def side(self) -> Value: ...

    def set_or_value(self) -> Value:
        token = self.peek()
        if token is None:
            raise NotAValueError("ends where a value is expected")
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
        """Whether the brace here belongs to a set in plain text: `{1, 2}` and `{x | x > 2}`."""
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
            items += both_signs(self.statement())
            if not self.take(*SEPARATORS):
                break
        if len(items) < 2 or len(items) > MAX_ITEMS:
            raise NotAValueError("has brackets around something that is not a list")
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
        items = self.statements()
        if self.take(*CLOSED) is None:
            raise NotAValueError(f"has a brace that is not closed {self.here}")
        return Items(tuple(items), braces=True)

    def _described(self) -> Value | None:
        r"""Reads `\{x \mid x > 2\}` and `\{x \in \mathbb{R} : x > 2\}` after the opening brace."""
        variable = self.peek()
        if variable is None or variable.kind != "word" or len(variable.text) != 1:
            return None
        self.next()
        if self.take(r"\in") and not (self.take(r"\mathbb") and self._braced_letter() == "R"):
            return None
        if self.take(*SUCH_THAT) is None:
            return None
        statements = self.statements()
        if self.take(*CLOSED) is None:
            raise NotAValueError(f"has a brace that is not closed {self.here}")
        if len(statements) == 1:
            return statements[0]
        return Items(tuple(statements), joined=self.joined)

    def _matrix(self, begin: Token) -> Value:
        if begin.text not in MATRICES | DETERMINANTS:
            raise NotAValueError(f"has {begin}, which is not a matrix")
        rows: list[tuple[Value, ...]] = []
        cells: list[Value] = []
        while True:
            cells.append(self.side())
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
        r"""Skips the `[2pt]` of `\\[2pt]`."""
        texts = [token.text if (token := self.peek(ahead)) is not None else "" for ahead in range(4)]
        if texts[0] == "[" and texts[1].isdigit() and texts[2] in ("pt", "ex", "em", "mm") and texts[3] == "]":
            self.place += 4

    def _ratio_or_scalar(self) -> Value:
        began = self.place
        first = self.measured()
        if not self.at(":", r"\colon"):
            return first
        items = [first]
        while self.take(":", r"\colon"):
            items.append(self.measured())
        if any(item.unit for item in items):
            raise NotAValueError("has a ratio with units")
        written = self.tokens[began : self.place]
        clock = any(token.kind == "number" and token.text[0] == "0" and len(token.text) > 1 for token in written)
        return Ratio(tuple(item.node for item in items), clock)


def both_signs(value: Value) -> list[Value]:
    r"""`a \pm b` as both of its values."""
    if isinstance(value, Named) and isinstance(value.value, Scalar):
        both = both_signs(value.value)
        return [value] if len(both) == 1 else [Named(value.name, value.letters, Items(tuple(both)))]
    if not isinstance(value, Scalar):
        return [value]
    either = [node for node in value.node.walk() if node.kind == "either"]
    if not either:
        return [value]
    if len([node for node in either if node.value == 1]) > 1:
        raise NotAValueError("has two signs of plus or minus")
    return [Scalar(with_sign(value.node, sign), value.unit) for sign in (1, -1)]
