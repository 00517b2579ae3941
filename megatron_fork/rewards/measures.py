"""A scalar with the words and signs around it: a currency sign, a word like "million", a unit."""

from __future__ import annotations

from megatron_fork.rewards.expressions import Expressions
from megatron_fork.rewards.nodes import Node, number, product
from megatron_fork.rewards.score import NotAValueError
from megatron_fork.rewards.tokens import Token
from megatron_fork.rewards.units import MONEY, MULTIPLES, POWERS, SHORT, SPEEDS, combined, unit_named
from megatron_fork.rewards.values import Scalar

MONEY_WORDS = {"rs": "rupee", "inr": "rupee", "usd": "dollar", "eur": "euro"}
PERCENT = frozenset(("percent", "pct", "percents"))


class Measured(Expressions):
    def measured(self) -> Scalar:
        """An expression with its unit; raises NotAValueError if a word follows that is not a unit."""
        money = self._currency()
        if money is None and self.at("-") and self._currency_at(1) is not None:
            self.next()  # `-\$5`
            money = self._currency()
            node = Node("negative", (self._scaled(self.expression()),))
        else:
            node = self._scaled(self.expression())
        behind = self._currency()
        if money and behind:
            raise NotAValueError("has two signs of currency")
        money = money or behind
        rate = money is not None and self._take_word("per")
        unit = combined(self._unit())
        if rate and money is not None:
            if not unit:
                raise NotAValueError(f"has no unit {self.here}")
            unit = combined([(money, 1), *((name, -power) for name, power in unit)])
        elif money is not None:
            if unit not in ((), ((money, 1),)):
                raise NotAValueError("has a currency and a unit")
            unit = ((money, 1),)
        inner = node.parts[0] if node.kind == "negative" else node
        if inner.kind == "degrees":
            if unit:
                raise NotAValueError("has degrees of a unit")
            plain = inner.parts[0] if inner is node else Node("negative", inner.parts)
            return Scalar(plain, ((inner.name or "degree", 1),))
        if unit and node.kind == "percent":
            raise NotAValueError("has a percentage of a unit")
        return Scalar(node, unit)

    def _currency_at(self, ahead: int) -> str | None:
        token = self.peek(ahead)
        if token is None or token.kind not in ("mark", "command"):
            return None
        return MONEY.get(token.text.lstrip("\\")) or ("GBP" if token.text == r"\pounds" else None)

    def _currency(self) -> str | None:
        money = self._currency_at(0)
        if money is not None:
            self.next()
        after = self.peek(1)
        if money is None and after is not None and (after.kind == "number" or after.text == "."):
            money = MONEY_WORDS.get(self._word_at(0))
            if money is not None:  # `Rs. 500`
                self.next()
                self.take(".")
        return money

    def _scaled(self, node: Node) -> Node:
        r"""Words that multiply or make a percentage: `7\text{ million}`, `28 percent`."""
        token = self.peek()
        if token is None or token.kind != "word":
            return node
        word = token.text.lower()
        if word in PERCENT or (word == "per" and self._word_at(1) == "cent"):
            self.place += 1 if word in PERCENT else 2
            if node.kind in ("percent", "degrees"):
                raise NotAValueError("has two signs of percent")
            return Node("percent", (node,))
        if word in MULTIPLES:
            zero = node.kind == "number" and not node.value
            if zero or not node.is_literal or node.kind in ("percent", "degrees") or node.bases:
                raise NotAValueError(f"has the word {token} after something that is not a number")
            self.next()
            factor = number(MULTIPLES[word])
            return number(node.value * factor.value) if node.kind == "number" else product([node, factor])
        return node

    def _word_at(self, ahead: int) -> str:
        token = self.peek(ahead)
        return token.text.lower() if token is not None and token.kind == "word" else ""

    def _unit(self) -> list[tuple[str, int]]:
        """The factors of a unit, as (name, power); empty if there is no unit here."""
        if self.at(r"\frac", r"\dfrac", r"\tfrac"):
            return self._fraction_of_units()
        factors: list[tuple[str, int]] = []
        sign, wanted = 1, False
        while (factor := self._factor()) is not None:
            name, power = factor
            if sign < 0 and self._take_word("squared"):
                power = 2  # `meters per second squared`
            speed = SPEEDS.get(name)
            factors += [(each, exponent * sign) for each, exponent in speed] if speed else [(name, power * sign)]
            if name == "year":
                self._take_word("old")
            if self.take("/") or self._take_word("per"):
                sign, wanted = -1, True
            else:
                wanted = self.take(r"\cdot", "*") is not None
        if wanted:
            raise NotAValueError(f"has no unit {self.here}")
        return factors

    def _take_word(self, word: str) -> bool:
        if self._word_at(0) == word:
            self.place += 1
            return True
        return False

    def _factor(self) -> tuple[str, int] | None:
        power = 1
        token = self.peek()
        if token is None or token.kind != "word" or not self.units_allowed:
            return None
        place = self.place
        if token.text.lower() in POWERS:
            power = POWERS[token.text.lower()]
            self.next()
            token = self.peek()
        name = self._named(token)
        if name is None:
            self.place = place
            return None
        self.next()
        if name in ("degree",) and self._word_at(0) in ("celsius", "fahrenheit", "c", "f"):
            return f"°{self.next().text[0].upper()}", 1
        digit = self.peek()
        if digit is not None and digit.text in ("2", "3") and digit.upright and not digit.spaced and power == 1:
            power = int(self.next().text)  # `cm2`
        if self.at("^"):
            if power > 1:
                raise NotAValueError("has a unit with two powers")
            power = self._unit_power()
        return name, power

    def _named(self, token: Token | None) -> str | None:
        if token is None or token.kind != "word":
            return None
        name = unit_named(token.text)
        short_and_close = len(token.text) == 1 and not (
            token.upright or token.spaced or self._after_operator_of_units()
        )
        if len(token.text) == 1 and token.text.isascii() and (token.text not in SHORT or short_and_close):
            return None
        return name

    def _after_operator_of_units(self) -> bool:
        before = self.previous()
        return before is not None and before.text in (r"\cdot", "*", "/", "{", "per")

    def _unit_power(self) -> int:
        self.expect("^")
        braced = self.take("{")
        sign = -1 if self.take("-") else 1
        token = self.next()
        if braced:
            self.expect("}")
        if token.value not in (1, 2, 3):
            raise NotAValueError("has a unit with an unusual power")
        return sign * int(token.value)

    def _fraction_of_units(self) -> list[tuple[str, int]]:
        r"""`\frac{\text{km}}{\text{h}}`."""
        place = self.place
        self.next()
        sides: list[list[tuple[str, int]]] = []
        for _ in range(2):
            if self.take("{") is None:
                break
            sides.append(self._unit())
            if self.take("}") is None:
                break
        if len(sides) < 2 or not all(sides):
            self.place = place
            return []
        return sides[0] + [(name, -power) for name, power in sides[1]]
