"""Rational arithmetic on expressions, bounded in the size of every number and in the total work."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from megatron_fork.rewards.nodes import Node
from megatron_fork.rewards.score import NotAValueError, TooCostlyError

# `2006!` has 19,000 bits; a tower of powers has more than fit into memory.
MAX_BITS = 100_000
# For all numbers of one evaluation together.
MAX_WORK_BITS = 3_000_000
Point = Mapping[str, Fraction]


class Undefined(NotAValueError):
    """Division by zero and other undefined values."""


class Exact:
    """Values of nodes at one point, as fractions; None if a value is irrational, or not known to be rational."""

    def __init__(self, point: Point) -> None:
        self.point = point
        self.work = 0

    def value(self, node: Node) -> Fraction | None:
        match node.kind:
            case "number":
                found: Fraction | None = node.value
            case "symbol":
                found = self.point[node.name]
            case "constant":
                found = None
            case "call":
                found = self._call(node)
            case "root":
                found = self._root(node)
            case _:
                found = self._arithmetic(node)
        return None if found is None else self._paid(found)

    def _paid(self, value: Fraction) -> Fraction:
        bits = value.numerator.bit_length() + value.denominator.bit_length()
        self.work += bits
        if bits > MAX_BITS or self.work > MAX_WORK_BITS:
            raise TooCostlyError()
        return value

    def _arithmetic(self, node: Node) -> Fraction | None:
        values = []
        for part in node.parts:
            value = self.value(part)
            if value is None:
                return None
            values.append(value)
        match node.kind:
            case "sum":
                return self._folded(values, add=True)
            case "product":
                return self._folded(values, add=False)
            case "negative":
                return -values[0]
            case "percent":
                return values[0] / 100
            case "quotient":
                if values[1] == 0:
                    raise Undefined("divides by zero")
                return values[0] / values[1]
            case "power":
                return self._power(values[0], values[1])
        return None

    def _folded(self, values: list[Fraction], *, add: bool) -> Fraction:
        result = values[0]
        for value in values[1:]:
            result = self._paid(result + value if add else result * value)
        return result

    def _power(self, base: Fraction, exponent: Fraction) -> Fraction | None:
        if exponent.denominator != 1:
            root = exact_root(base, exponent.denominator)
            return None if root is None else self._power(root, Fraction(exponent.numerator))
        if base == 0 and exponent <= 0:
            raise Undefined("has a power of zero that is undefined")
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if (abs(exponent) > MAX_BITS and base not in (0, 1, -1)) or (bits > 1 and bits * abs(exponent) > 2 * MAX_BITS):
            raise TooCostlyError()
        if base in (0, 1, -1):
            return base if exponent % 2 else base * base
        return base ** int(exponent)

    def _root(self, node: Node) -> Fraction | None:
        index, inner = (self.value(part) for part in node.parts)
        if index is None or inner is None:
            return None
        if index.denominator != 1 or index < 2:
            raise Undefined("has a root of an unusual index")
        return exact_root(inner, int(index))

    def _call(self, node: Node) -> Fraction | None:
        values = [self.value(part) for part in node.parts]
        if any(value is None for value in values):
            return None
        known = [value for value in values if value is not None]
        first = known[0]
        match node.name:
            case "absolute":
                return abs(first)
            case "floor":
                return Fraction(math.floor(first))
            case "ceiling":
                return Fraction(math.ceil(first))
            case "max":
                return max(known)
            case "min":
                return min(known)
            case "gcd":
                return Fraction(math.gcd(*map(_integer, known)))
            case "factorial":
                return Fraction(math.factorial(_integer(first, most=10_000)))
            case "binomial":
                return Fraction(_binomial(*known))
            case "ln":
                return Fraction(0) if first == 1 else None
        return None


def _integer(value: Fraction, most: int = 10**9) -> int:
    if value.denominator != 1 or value < 0:
        raise Undefined("has a function of integers at a value that is not an integer")
    if value > most:
        raise TooCostlyError()
    return int(value)


def _binomial(above: Fraction, below: Fraction) -> int:
    n, k = _integer(above), _integer(below)
    if min(k, max(n - k, 0)) * max(n.bit_length(), 1) > MAX_BITS:
        raise TooCostlyError()
    return math.comb(n, k)


def exact_root(value: Fraction, index: int) -> Fraction | None:
    """The root if it is rational; the negative root of a negative number if `index` is odd."""
    if value < 0:
        positive = exact_root(-value, index) if index % 2 else None
        return None if positive is None else -positive
    above, below = _integer_root(value.numerator, index), _integer_root(value.denominator, index)
    return None if above is None or below is None else Fraction(above, below)


def _integer_root(value: int, index: int) -> int | None:
    if value < 2:
        return value
    if index == 2:
        root = math.isqrt(value)
    elif index >= value.bit_length():
        return None
    else:
        root = 1 << -(-value.bit_length() // index)
        while (smaller := ((index - 1) * root + value // root ** (index - 1)) // index) < root:
            root = smaller
    return root if root**index == value else None
