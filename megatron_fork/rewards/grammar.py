r"""The grammar of answers: `parse` reads an answer from the first token to the last, or it is not a value.

answer    = statement { ("," | ";" | "and" | "or") statement }
statement = [name "="] side | side relation side [relation side] | variable "\in" side
side      = set { ("\cup" | "\cap" | "\setminus") set } | ratio | expression [unit]
set       = "(" | "[" | "]" items ")" | "]" | "[" | "\{" items "\}" | "\{" variable "|" statement "\}" | matrix | "\mathbb{R}"
"""

from __future__ import annotations

from fractions import Fraction

from megatron_fork.rewards.bracketed import MAX_ITEMS, Bracketed, both_signs
from megatron_fork.rewards.exact import Exact
from megatron_fork.rewards.names import CLOSING, OPENING, SEPARATORS, SIGNS, is_name, statement_length, without_inverse
from megatron_fork.rewards.score import NotAValueError
from megatron_fork.rewards.tokens import Token, tokenize
from megatron_fork.rewards.values import (
    Brackets,
    Combined,
    Items,
    Named,
    NumberSet,
    Ratio,
    Relation,
    Scalar,
    Value,
)

JOINED = {r"\cup": "cup", r"\cap": "cap", r"\setminus": "setminus", r"\backslash": "setminus", r"\bigcup": "cup"}
ABBREVIATED = frozenset("in sq cu ft yd mi hr hrs min sec lb lbs oz deg yr yrs gal".split())


def parse(text: str, *, grouping: bool = True) -> Value:
    """The value of an answer; raises NotAValueError if any part of it does not fit the grammar."""
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
    """The exact value of a number that is written as one, without a unit; None if `text` is anything else."""
    try:
        value = parse(text)
        return (
            Exact({}).value(value.node)
            if isinstance(value, Scalar) and value.node.is_literal and not value.unit
            else None
        )
    except NotAValueError:
        return None


def _whole(grammar: Grammar) -> Value:
    value = grammar.answer()
    if grammar.peek() is not None:
        raise NotAValueError(f"cannot be read further {grammar.here}")
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


class Grammar(Bracketed):
    """Recursive descent over the tokens of one answer; `joined` is the word between the last statements that were read."""

    def answer(self) -> Value:
        items = self.statements()
        named = _name_before_list(items)
        if named is not None:
            return named
        return items[0] if len(items) == 1 else Items(tuple(items), joined=self.joined)

    def statements(self) -> list[Value]:
        items: list[Value] = []
        words = set()
        while True:
            items += both_signs(self.statement())
            if len(items) > MAX_ITEMS:
                raise NotAValueError(f"has more than {MAX_ITEMS} parts")
            separator = self._separator()
            words.add(separator)
            if not separator:
                self.joined = "or" if "or" in words else "and" if "and" in words else ","
                return items

    def _separator(self) -> str:
        """Skips `,`, `;`, "and", "or", or a comma and one of the words; returns which, or "" for none."""
        found = "," if self.take(*SEPARATORS) is not None else ""
        token = self.peek()
        if token is not None and token.kind == "word" and token.text.lower() in ("and", "or"):
            self.place += 1
            return token.text.lower()
        return found

    def statement(self) -> Value:
        self.depth += 1
        if self.depth > 12:
            raise NotAValueError("has brackets in brackets in brackets")
        value = self._relation()
        self.depth -= 1
        return value

    def _relation(self) -> Value:
        name = self._name()
        if name is not None:
            side = self.side()
            several = "(" if name[0].startswith("(") else ":" if ":" in name[0] else ""
            if (several == "(" and not isinstance(side, Brackets)) or (several == ":" and not isinstance(side, Ratio)):
                raise NotAValueError("gives several names to one value")
            return Named(name[0], name[1], side)
        sides = [self.side()]
        signs: list[str] = []
        if self.take(r"\in") is not None:
            _check_is_variable(sides[0])
            side = self.side()
            if not isinstance(side, Brackets | Combined | NumberSet) and not (isinstance(side, Items) and side.braces):
                raise NotAValueError("has an element of something that is not a set")
            return side
        while (token := self.peek()) is not None and token.text in SIGNS and token.kind in ("mark", "command"):
            signs.append(SIGNS[self.next().text])
            sides.append(self.side())
        if not signs:
            return sides[0]
        scalars = [side for side in sides if isinstance(side, Scalar)]
        chain = len(signs) == 2 and (set(signs) <= {"<", "<="} or set(signs) <= {">", ">="})
        if len(scalars) < len(sides) or not (len(signs) == 1 or chain):
            raise NotAValueError("is a chain of relations and not a value")
        if any(side.node.bases for side in scalars):
            raise NotAValueError("has a number of another base in a relation")
        return Relation(tuple(scalars), tuple(signs))

    def side(self) -> Value:
        parts = [self.set_or_value()]
        joined = None
        if isinstance(parts[0], NumberSet) and self.take("-"):
            return Combined("setminus", (parts[0], self.set_or_value()))
        while (token := self.take(*JOINED)) is not None:
            if joined not in (None, JOINED[token.text]):
                raise NotAValueError("joins sets in more than one way")
            joined = JOINED[token.text]
            parts.append(self.set_or_value())
        if joined is None:
            return parts[0]
        return Combined(joined, tuple(parts))  # type: ignore[arg-type]

    def _name(self) -> tuple[str, frozenset[str]] | None:
        """The name before the first `=`, if it can be one; the cursor is then after the `=`."""
        if not self.has_equals:
            return None
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
            elif (depth == 0 and plain and (token.text in SEPARATORS or token.text in SIGNS)) or depth < 0:
                return None
            stop += 1
        whole = self.tokens[self.place : stop]
        written = without_inverse(whole)
        if stop == len(self.tokens) or not is_name(written):
            return None
        after = self.tokens[stop + 1 :]
        if any(token.text == "=" for token in after[: statement_length(after)]):
            raise NotAValueError("is a chain of relations and not a value")
        self.place = stop + 1
        name = "".join(token.text for token in written if token.text not in ("{", "}", r"\angle"))
        if len(written) < len(whole):
            name = f"inverse {name}"
        variable = name.lstrip("\\")
        return name, frozenset((variable,)) if "(" not in name else frozenset()


def _check_is_variable(value: Value) -> None:
    if not isinstance(value, Scalar) or value.unit or value.node.kind != "symbol" or value.node.name[0].isupper():
        raise NotAValueError("says that something is in a set, but it is not a variable")


def _name_before_list(items: list[Value]) -> Value | None:
    """`n = 1, 2, 3` names the whole list."""
    first, *rest = items
    if not isinstance(first, Named) or not rest or any(isinstance(item, Named | Relation) for item in rest):
        return None
    return Named(first.name, first.letters, Items((first.value, *rest)))
