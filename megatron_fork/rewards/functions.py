r"""Functions, roots and fractions within expressions: `\sin^2 2x`, `\sqrt[3]{2}`, `\frac12`, `\log_2 8`, `exp(2)`."""

from __future__ import annotations

from abc import ABC, abstractmethod

from megatron_fork.rewards.cursor import Cursor
from megatron_fork.rewards.nodes import Node, negative, number, product
from megatron_fork.rewards.score import NotAValueError
from megatron_fork.rewards.tokens import Token

FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log lg exp sqrt abs max min gcd".split()
)
# Only as commands: `max(7,3)` in plain text is code.
OF_SEVERAL = frozenset(("max", "min", "gcd"))
SYNONYMS = {
    "asin": "arcsin",
    "acos": "arccos",
    "atan": "arctan",
    "tg": "tan",
    "ctg": "cot",
    "cosec": "csc",
    "arctg": "arctan",
}
INVERSES = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
CONSTANTS = {
    "pi": "pi",
    "e": "e",
    "i": "i",
    "infty": "infinity",
    "infinity": "infinity",
    "oo": "infinity",
    "inf": "infinity",
}
GREEK = frozenset(
    (
        "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon "
        "phi varphi chi psi omega Gamma Delta Theta Lambda Xi Phi Psi Omega ell"
    ).split()
)
FRACTIONS = frozenset(("frac", "dfrac", "tfrac", "cfrac"))
OVER = ("/", r"\div")


class Functions(Cursor, ABC):
    """Reads what begins with a name or command; a subclass reads the expressions inside."""

    @abstractmethod
    def expression(self) -> Node: ...

    @abstractmethod
    def atom(self) -> Node: ...

    @abstractmethod
    def power(self) -> Node: ...

    @abstractmethod
    def exponent(self) -> Node: ...

    @abstractmethod
    def grouped(self, token: Token) -> Node: ...

    @abstractmethod
    def postfix(self, node: Node) -> Node: ...

    @abstractmethod
    def begins_factor(self) -> bool: ...

    @abstractmethod
    def word(self, token: Token) -> Node: ...

    @abstractmethod
    def symbol(self, name: str) -> Node: ...

    def arguments(self, name: str) -> Node:
        self.expect("(")
        arguments = [self.expression()]
        while self.take(","):
            arguments.append(self.expression())
        self.expect(")")
        return Node("call", tuple(arguments), name=name)

    def command(self, token: Token) -> Node:
        name = SYNONYMS.get(token.text[1:], token.text[1:])
        if name in FRACTIONS:
            return Node("quotient", (self._argument(), self._argument()))
        if name in ("binom", "dbinom", "tbinom"):
            return Node("call", (self._argument(), self._argument()), name="binomial")
        if name in FUNCTIONS:
            return self.call(name)
        if name in CONSTANTS:
            return Node("constant", name=CONSTANTS[name])
        if name in GREEK:
            return self.symbol("epsilon" if name == "varepsilon" else "phi" if name == "varphi" else name)
        if name == "operatorname":
            return self.word(self.next())
        raise NotAValueError(f"has {token}, which is not known")

    def _argument(self) -> Node:
        r"""The argument of a command: a group, or one digit or letter, so that `\frac12` is a half."""
        token = self.peek()
        if token is not None and token.text == "{":
            return self.grouped(self.next())
        if token is not None and token.kind in ("number", "word") and len(token.text) > 1:
            self.split(token)
        if (
            token is not None
            and token.kind == "command"
            and token.text[1:] not in (*CONSTANTS, *GREEK, "sqrt", *FRACTIONS)
        ):
            raise NotAValueError(f"has {token} where an argument is expected")
        return self.atom()

    def call(self, name: str) -> Node:
        if name == "sqrt":
            return self._root()
        index = None
        if name == "log" and self.take("_"):
            index = self._argument()
        exponent = self.exponent() if self.take("^") else None
        if exponent is not None and exponent == negative(number(1)):
            name, exponent = INVERSES.get(name, ""), None
            if not name:
                raise NotAValueError("has an inverse function that is not known")
        call = self._applied(name, index)
        return call if exponent is None else Node("power", (call, exponent))

    def _applied(self, name: str, index: Node | None) -> Node:
        if name in OF_SEVERAL:
            return self.arguments(name)
        if self.at("(", "[", "{"):
            inner = self.postfix(self.grouped(self.next()))
        else:
            sign = self.take("-")
            factors = [self.power()]
            while (self.begins_factor() and not self._begins_function()) or self.at(*OVER):
                if self.take(*OVER):
                    factors = [Node("quotient", (product(factors), self.power()))]
                elif self.at("(", "["):
                    break
                else:
                    factors.append(self.power())
            inner = negative(product(factors)) if sign else product(factors)
        if name == "exp":
            return Node("power", (Node("constant", name="e"), inner))
        if (name == "log" and index is not None) or name == "lg":
            base = index or number(10)
            return Node("quotient", (Node("call", (inner,), name="ln"), Node("call", (base,), name="ln")))
        return Node("call", (inner,), name="absolute" if name == "abs" else name)

    def _begins_function(self) -> bool:
        token = self.peek()
        return token is not None and SYNONYMS.get(token.text.lstrip("\\"), token.text.lstrip("\\")) in FUNCTIONS

    def _root(self) -> Node:
        index = number(2)
        if self.take("["):
            index = self.expression()
            self.expect("]")
        token = self.peek()
        plain = self.previous()
        bare = (token is not None and token.text == "(") or (plain is not None and plain.kind == "word")
        inner = self.atom() if bare else self._argument()
        if token is not None and token.text not in ("(", "{") and self.at("^", "**", "!"):
            raise NotAValueError("has a root without braces before a power")
        return Node("root", (index, inner))
