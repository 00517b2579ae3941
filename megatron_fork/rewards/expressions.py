r"""Expressions of LaTeX and of plain text by recursive descent: sums of products of powers of single terms.

Multiplication signs may be left out, but not before a number: nobody means `\sqrt{2} 3` or `7 8` as a product. A word is the
name of a function or constant, or a product of at most three variables; any other word is unknown and ends the parse.
"""

from __future__ import annotations

from fractions import Fraction

from megatron_fork.rewards.functions import (
    CONSTANTS,
    FRACTIONS,
    FUNCTIONS,
    GREEK,
    OF_SEVERAL,
    OVER,
    SYNONYMS,
    Functions,
)
from megatron_fork.rewards.nodes import Node, negative, number, product, total
from megatron_fork.rewards.score import NotAValueError
from megatron_fork.rewards.tokens import Token
from megatron_fork.rewards.units import CLOSE, MULTIPLES, POWERS, SHORT, unit_named

MAX_NESTING = 30
MAX_VARIABLES = 3
APPLIED = frozenset("fg")
BARS = {r"\lvert": r"\rvert", r"\vert": r"\vert", "|": "|"}
ROUNDED = {r"\lfloor": (r"\rfloor", "floor"), r"\lceil": (r"\rceil", "ceiling")}
TIMES = ("*", r"\cdot", r"\times", r"\ast")
CLOSERS = {"(": ")", "[": "]", "{": "}", r"\lbrack": r"\rbrack"}
# Words that may follow a value and are not units themselves.
BEFORE_UNITS = frozenset((*MULTIPLES, *POWERS, "percent", "percents", "pct", "per"))


class Expressions(Functions):
    """Reads expressions at the cursor; `bars` counts the absolute values that are open."""

    depth = 0
    bars = 0

    def expression(self) -> Node:
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise NotAValueError(f"is nested more than {MAX_NESTING} deep")
        terms = [self._signed(first=True)]
        while self.at("+", "-", r"\pm", r"\mp"):
            terms.append(self._signed(first=False))
        self.depth -= 1
        return total(terms)

    def _signed(self, *, first: bool) -> Node:
        sign = self.take("+", "-", r"\pm", r"\mp")
        if sign is None:
            return self._term()
        if not first and sign.text == "+" and self.at("-"):
            sign = self.take("-")  # `14 + -i`
        assert sign is not None
        if self.at("+", "-", r"\pm", r"\mp"):
            raise NotAValueError(f"has two signs, {self.here}")
        term = self._term()
        if sign.text in (r"\pm", r"\mp"):
            return Node("either", (term,), Fraction(1 if sign.text == r"\pm" else -1))
        return negative(term) if sign.text == "-" else term

    def _term(self) -> Node:
        factors = [self.power()]
        while True:
            if self.take(*TIMES):
                factors.append(self._after_operator())
            elif self.take(*OVER):
                below = self._after_operator()
                factors = [Node("quotient", (product(factors), below))]
            elif self.begins_factor():
                factors.append(self.power())
            else:
                return product(factors)

    def _after_operator(self) -> Node:
        return negative(self.power()) if self.take("-") else self.power()

    def begins_factor(self) -> bool:
        """Whether the next token multiplies what is before it, with no sign between."""
        token = self.peek()
        if token is None or self._is_unit(token) or self._is_separator(token):
            return False
        if token.kind == "word":
            return True
        if token.kind == "command":
            name = token.text[1:]
            if name in FRACTIONS and self._is_fraction_of_units():
                return False
            known = name in GREEK or name in FUNCTIONS or name in CONSTANTS or name in FRACTIONS
            return known or name in ("binom", "dbinom", "tbinom", "lvert", "lfloor", "lceil", "operatorname")
        return token.text in ("(", "{", "√", "∛") or (token.text == "|" and not self.bars)

    def _is_unit(self, token: Token) -> bool:
        before = self.previous()
        if token.kind != "word" or before is None or not self.units_allowed or before.text in ("_", "^"):
            return False
        if before.kind == "word" and not token.upright:
            return False
        if token.text.lower() in BEFORE_UNITS:
            return True
        if unit_named(token.text) is None or not token.text.isascii() or len(token.text) > 1:
            return unit_named(token.text) is not None
        return token.text in SHORT and (token.spaced or (token.upright and token.text in CLOSE))

    def _is_fraction_of_units(self) -> bool:
        first, second = self.peek(1), self.peek(2)
        braced = first is not None and first.text == "{"
        return braced and second is not None and second.upright and unit_named(second.text) is not None

    @staticmethod
    def _is_separator(token: Token) -> bool:
        return token.kind == "word" and token.text.lower() in ("and", "or")

    def power(self) -> Node:
        base = self.postfix(self.atom())
        if not self.take("^", "**"):
            return base
        if base == number(1):
            raise NotAValueError("has a power of 1, which means nothing")
        power = Node("power", (base, self.exponent()))
        if power.parts[1] == number(1) and base != number(10):
            raise NotAValueError("has 1 as a power, which means nothing")
        if self.at("^", "**", "!"):
            raise NotAValueError(f"has a power of a power without braces, {self.here}")
        return self.postfix(power)

    def exponent(self) -> Node:
        if self.take("-"):
            return negative(self.exponent())
        token = self.peek()
        if token is not None and token.kind == "word" and len(token.text) > 1:
            return self._letter_of_word(token)
        return self.atom()

    def _letter_of_word(self, token: Token) -> Node:
        """`x^ab` is x to the a, times b."""
        if token.text in CONSTANTS or token.upright:
            return self.atom()
        self.split(token)
        return self.atom()

    def postfix(self, node: Node) -> Node:
        while True:
            if self.take("!"):
                if self.at("!"):
                    raise NotAValueError("has a double factorial")
                if self.peek() is None and node.kind == "number" and node.value <= 2:
                    raise NotAValueError("ends in a factorial that means nothing")
                node = Node("call", (node,), name="factorial")
            elif self.at("%", r"\%"):
                self.take("%", r"\%")
                if node.kind == "percent":
                    raise NotAValueError("has two signs of percent")
                node = Node("percent", (node,))
            elif self.at_degrees():
                self.skip_degrees()
                scale = self.peek()
                temperature = scale is not None and scale.kind == "word" and scale.text in ("C", "F")
                node = Node("degrees", (node,), name=f"°{self.next().text}" if temperature else "")
            else:
                return node

    def atom(self) -> Node:
        token = self.next()
        if token.kind == "number":
            assert token.value is not None
            return self._mixed(token)
        if token.kind == "word":
            return self.word(token)
        if token.text in ("(", "[", "{"):
            return self.grouped(token)
        if token.text in ("√", "∛"):
            return Node("root", (number(2 if token.text == "√" else 3), self.atom()))
        if token.text in BARS:
            self.bars += 1
            inner = self.expression()
            self.bars -= 1
            self.expect(BARS[token.text])
            return Node("call", (inner,), name="absolute")
        if token.text in ROUNDED:
            closing, name = ROUNDED[token.text]
            inner = self.expression()
            self.expect(closing)
            return Node("call", (inner,), name=name)
        if token.kind == "command":
            return self.command(token)
        raise NotAValueError(f"has {token} where a value is expected")

    def grouped(self, token: Token) -> Node:
        bars, self.bars = self.bars, 0
        inner = self.expression()
        self.bars = bars
        self.expect(CLOSERS[token.text])
        if token.text == "(" and inner.kind == "number" and self.at("_"):
            return self._of_base(inner)
        return inner

    def _of_base(self, inner: Node) -> Node:
        r"""`(11)_2`."""
        self.expect("_")
        braced = self.take("{")
        parenthesis = self.take("(") if braced else None
        base = self.next()
        if parenthesis:
            self.expect(")")
        if braced:
            self.expect("}")
        if self.at("_"):
            raise NotAValueError("has two bases")
        digits = str(inner.value)
        if base.value is None or base.value.denominator != 1 or not digits.isdigit() or not 2 <= base.value <= 10:
            raise NotAValueError("has an index at a number that is not a base")
        if int(max(digits)) >= base.value:
            raise NotAValueError("has digits that its base does not have")
        return _based(Fraction(int(digits, int(base.value))), int(base.value))

    def _mixed(self, token: Token) -> Node:
        r"""A number, with the fraction of a mixed one: `1\frac12`, `1 1/2`."""
        assert token.value is not None
        whole = _based(token.value, token.base)
        after = self.peek()
        if token.value.denominator != 1 or token.base != 10 or "." in token.text or after is None or token.value == 0:
            return whole
        if after.kind == "command" and after.text[1:] in FRACTIONS and not self._is_fraction_of_units():
            place = self.place
            fraction = self.atom()
            if fraction.kind == "quotient" and all(part.kind == "number" for part in fraction.parts):
                above, below = (part.value for part in fraction.parts)
                if 0 < above < below and above.denominator == below.denominator == 1 and not self.at("^", "!"):
                    return number(token.value + above / below)
            self.place = place
        elif after.kind == "number" and after.spaced and not after.upright:
            above_token, slash, below_token = self.peek(), self.peek(1), self.peek(2)
            if slash is not None and slash.text == "/" and below_token is not None and below_token.value is not None:
                assert above_token is not None and above_token.value is not None
                if (
                    0 < above_token.value < below_token.value
                    and above_token.text.isdigit()
                    and below_token.text.isdigit()
                ):
                    self.place += 3
                    return number(token.value + above_token.value / below_token.value)
        return whole

    def word(self, token: Token) -> Node:
        name = SYNONYMS.get(token.text, token.text)
        if name in FUNCTIONS - OF_SEVERAL:
            return self.call(name)
        if name in CONSTANTS:
            return Node("constant", name=CONSTANTS[name])
        if len(name) == 1 and name.isascii():
            return self.symbol(name)
        for known in sorted((*(FUNCTIONS - OF_SEVERAL), *SYNONYMS, "pi"), key=len, reverse=True):
            at = name.find(known)
            if at >= 0 and not token.upright and len(name) - len(known) <= MAX_VARIABLES:
                self.split(token, at or len(known), back=True)
                return self.word(self.next())
        if token.upright or len(name) > MAX_VARIABLES or not name.isascii():
            raise NotAValueError(f"has the word {token}")
        self.split(token, back=True)
        return self.word(self.next())

    def symbol(self, name: str) -> Node:
        if self.take("_"):
            name += "_" + self.subscript()
        elif name in APPLIED and self.at("("):
            return self.arguments(name)
        return Node("symbol", name=name)


def _based(value: Fraction, base: int) -> Node:
    return number(value) if base == 10 else Node("number", value=value, name=f"base {base}")
