"""Expressions as numbers with so many digits that a difference of zero is a proof of equality, or as good as one.

The number of digits follows from the expression: from the sizes of its parts (so that neither `1/100!` nor `7+2^{-300}`
vanishes in rounding), and for roots from a bound on how close to zero a nonzero algebraic number can be (Burnikel et al.).
"""

from __future__ import annotations

import math
import threading
from fractions import Fraction
from typing import Any

from megatron_fork.rewards.exact import Exact, Point, Undefined
from megatron_fork.rewards.nodes import Node
from megatron_fork.rewards.score import NotAValueError, TooCostlyError

FIRST_BITS = 96
MARGIN_BITS = 160
MAX_BITS = 60_000
# Bits times nodes, for one evaluation.
MAX_WORK = 2_000_000
# The largest argument of an exponential function, as a power of two.
MAX_ARGUMENT_BITS = 40
# 1 - cos(x) is about as large as x squared.
BITS_OF_WEIGHT = 4
# Other nodes only have the sizes of their parts.
NEW_SIZES = ("number", "symbol", "constant", "power", "root", "call")
# tanh(x) is closer to 1 than 2^(-2.9 x).
BITS_OF_AN_ARGUMENT = 3
APART = 0.7531903

REAL = {
    "sin": "sin", "cos": "cos", "tan": "tan", "cot": "cot", "sec": "sec", "csc": "csc", "arctan": "atan", "sinh": "sinh",
    "cosh": "cosh", "tanh": "tanh",
}  # fmt: skip


class OfThread(threading.local):
    context: Any = None


OF_THREAD = OfThread()


def context_of_thread() -> Any:
    """This thread's mpmath context, made at first use: that takes longer than most comparisons, and other kinds need none."""
    if OF_THREAD.context is None:
        import mpmath  # type: ignore[import-untyped]

        OF_THREAD.context = mpmath.MPContext()
    return OF_THREAD.context


class Numeric:
    """Values at one point with `bits` of precision; `weight` is how many of them the sizes of the values may use up."""

    def __init__(self, point: Point, bits: int, *, real: bool) -> None:
        self.point = point
        self.context: Any = context_of_thread()
        self.context.prec = bits
        self.real = real
        self.weight = 0.0
        self.peak = 0

    def value(self, node: Node) -> Any:
        found = self._value(node)
        if self.context.isnan(found) or self.context.isinf(found):
            raise Undefined("has an undefined part")
        if self.real and isinstance(found, self.context.mpc):
            raise Undefined("is not real")
        size = self._size(found)
        if node.kind in NEW_SIZES:
            self.weight += abs(size)
        self.peak = max(self.peak, size)
        if self.weight > MAX_BITS:
            raise TooCostlyError()
        return found

    def _size(self, found: Any) -> int:
        """The binary logarithm of its size, rounded; 0 for zero."""
        return int(self.context.mag(found)) if found else 0

    def _value(self, node: Node) -> Any:
        context = self.context
        if node.kind == "number":
            return self._of(node.value)
        if node.kind == "symbol":
            return self._of(self.point[node.name])
        if node.kind == "constant":
            if node.name == "infinity":
                raise Undefined("has infinity in it")
            return {"pi": +context.pi, "e": +context.e, "i": context.mpc(0, 1)}[node.name]
        if node.kind == "root":
            index = Exact(self.point).value(node.parts[0])
            if index is None or index.denominator != 1 or index < 2:
                raise Undefined("has a root of an unusual index")
            return self._power(node.parts[1], Fraction(1, int(index)))
        if node.kind == "power":
            return self._powered(node)
        values = [self.value(part) for part in node.parts]
        match node.kind:
            case "sum":
                return context.fsum(values)
            case "product":
                return context.fprod(values)
            case "quotient":
                if not values[1] or self._size(values[1]) < -context.prec * 3 // 4:
                    raise Undefined("divides by zero")
                return values[0] / values[1]
            case "negative":
                return -values[0]
            case "percent":
                return values[0] / 100
            case "degrees":
                if node.name:
                    raise Undefined("computes with a temperature")
                return values[0] * context.pi / 180
        return self._call(node.name, values)

    def _of(self, value: Fraction) -> Any:
        self.weight += value.numerator.bit_length() + value.denominator.bit_length()
        return self.context.mpf(value.numerator) / value.denominator

    def _powered(self, node: Node) -> Any:
        base, exponent = node.parts
        try:
            rational = Exact(self.point).value(exponent)
        except TooCostlyError:
            raise
        except NotAValueError as error:
            raise Undefined(str(error)) from None
        if rational is not None:
            return self._power(base, rational)
        below, above = self.value(base), self.value(exponent)
        if not below:
            raise Undefined("has a power of zero")
        logarithm = self.context.ln(below)
        self._check_argument(logarithm * above)
        return self.context.exp(logarithm * above)

    def _power(self, base: Node, exponent: Fraction) -> Any:
        """A rational power; real if it is an odd root of a negative number."""
        context = self.context
        below = self.value(base)
        if not below and exponent <= 0:
            raise Undefined("has a power of zero")
        if below:
            self._check_argument(self._size(below) * exponent)
        if exponent.denominator == 1:
            return below ** int(exponent)
        if not isinstance(below, context.mpc) and below < 0:
            if exponent.denominator % 2:
                return (-1) ** exponent.numerator * (-below) ** self._of(exponent)
            if exponent.denominator == 2:
                return context.mpc(0, 1) ** exponent.numerator * (-below) ** self._of(exponent)
        return context.sqrt(below) if exponent == Fraction(1, 2) else below ** self._of(exponent)

    def _check_argument(self, argument: Any) -> None:
        rational = isinstance(argument, Fraction | int)
        size = (int(abs(argument)) if rational else 0).bit_length() if rational else self._size(argument)
        if size > MAX_ARGUMENT_BITS:
            raise TooCostlyError()

    def _call(self, name: str, values: list[Any]) -> Any:
        context, first = self.context, values[0]
        if name in REAL:
            self._check_argument(first)
            if name.endswith("h"):
                self.weight += float(abs(first)) * BITS_OF_AN_ARGUMENT
            try:
                return getattr(context, REAL[name])(first)
            except ZeroDivisionError:
                raise Undefined("has an undefined part") from None
        match name:
            case "arcsin" | "arccos":
                return context.asin(first) if name == "arcsin" else context.acos(first)
            case "ln" | "log":
                if not first:
                    raise Undefined("has the logarithm of zero")
                # "log" without a base is a logarithm to an unknown base.
                return context.ln(first) * (self._of(Fraction(61803, 99991)) if name == "log" else 1)
            case "absolute":
                return abs(first)
            case "floor" | "ceiling":
                near = context.nint(first)
                if isinstance(first, context.mpc) or abs(first - near) < context.mpf(2) ** (-context.prec // 2):
                    raise Undefined("rounds something that is not a real number, or is a whole one")
                return context.floor(first) if name == "floor" else context.ceil(first)
            case "max" | "min":
                return max(values) if name == "max" else min(values)
            case "factorial" | "binomial":
                raise Undefined("has a function of integers at a value that is not an integer")
        # An unknown function: any value that differs whenever the name or an argument differs.
        mixed = self._of(Fraction(sum(map(ord, name)), 977))
        for place, value in enumerate(values):
            self._check_argument(value)
            mixed = context.sin(mixed * APART + value * (place + 2)) + value / 7
        return mixed


def is_zero(node: Node, point: Point, *, real: bool) -> bool:
    """Whether the value of `node` is zero; raises Undefined, and TooCostlyError if that costs too much to decide."""
    exact = Exact(point).value(node)
    if exact is not None:
        return exact == 0
    size = sum(1 for _ in node.walk())
    first = Numeric(point, FIRST_BITS, real=real)
    first.value(node)
    bits = MARGIN_BITS + BITS_OF_WEIGHT * int(first.weight)
    separation = separation_bits(node, point)
    if separation is not None and 1.4 * separation < MAX_BITS / 4:
        bits = max(bits, int(1.4 * separation) + MARGIN_BITS)
    if bits > MAX_BITS or bits * size > MAX_WORK:
        raise TooCostlyError()
    last = Numeric(point, bits, real=real)
    value = last.value(node)
    return not value or last.context.mag(value) < last.peak - bits * 3 // 4


def separation_bits(node: Node, point: Point) -> float | None:
    """Bits that distinguish an algebraic number from zero; None if `node` is not made of roots of rationals."""
    bounds = _bounds(node, point)
    if bounds is None:
        return None
    degree = 1.0
    for root in {each for each in node.walk() if each.kind in ("root", "power")}:
        index = _root_index(root, point)
        degree *= index
        if degree > 4096:
            return None
    upper, lower = bounds
    return (degree - 1) * max(upper, 0.0) + max(lower, 0.0)


def _root_index(node: Node, point: Point) -> int:
    part = node.parts[0] if node.kind == "root" else node.parts[1]
    value = Exact(point).value(part)
    if value is None:
        return 4097
    return int(value) if node.kind == "root" else value.denominator


def _bounds(node: Node, point: Point) -> tuple[float, float] | None:
    """Binary logarithms of bounds on numerator and denominator, and on their conjugates."""
    if node.kind in ("number", "symbol"):
        value = node.value if node.kind == "number" else point[node.name]
        return math.log2(abs(value.numerator) or 1), math.log2(value.denominator)
    if node.kind in ("constant", "call", "degrees", "either"):
        return (0.0, 0.0) if node.kind == "constant" and node.name == "i" else None
    parts = node.parts[1:] if node.kind == "root" else node.parts[:1] if node.kind == "power" else node.parts
    found = [_bounds(part, point) for part in parts]
    if any(each is None for each in found):
        return None
    known = [each for each in found if each is not None]
    upper, lower = known[0]
    if node.kind == "negative":
        return upper, lower
    if node.kind == "percent":
        return upper, lower + math.log2(100)
    if node.kind == "root":
        index = _root_index(node, point)
        return upper / index, lower / index
    if node.kind == "power":
        exponent = Exact(point).value(node.parts[1])
        if exponent is None:
            return None
        size = float(abs(exponent))
        return (upper * size, lower * size) if exponent >= 0 else (lower * size, upper * size)
    if node.kind == "quotient":
        return upper + known[1][1], lower + known[1][0]
    if node.kind == "product":
        return sum(each[0] for each in known), sum(each[1] for each in known)
    below = sum(each[1] for each in known)
    return max(each[0] + below - each[1] for each in known) + math.log2(len(known) + 1), below
