"""Whether two expressions are equal: exactly if they are rational, else by numbers of sufficient precision.

With variables, two expressions are equal if they are equal at every one of a dozen points where both are defined; the points
are rational numbers at which no expression is made to vanish. Whole numbers are tried if nothing else is defined: `(-1)^n`,
`n!`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction

from megatron_fork.rewards.exact import Exact, Undefined
from megatron_fork.rewards.nodes import Node, negative, number
from megatron_fork.rewards.numeric import FIRST_BITS, Numeric, is_zero

ENOUGH = 4
MOST = 8
# (smallest, largest) of the points of a round, in thousandths.
ROUNDS = (
    (1100, 3900),
    (150, 950),
    (1100, 2900),
    (-2900, -1100),
    (4000, 19000),
    (-950, -150),
    (300, 7000),
    (-7000, -300),
)
WHOLE = ((1, 4), (2, 9), (3, 12), (1, 15), (5, 20), (2, 30)) * 4
DENOMINATOR = 1009


def equal(first: Node, second: Node) -> bool:
    """Whether both have the same value wherever both are defined; raises TooCostlyError if that cannot be decided."""
    if first == second:
        return True
    symbols = first.symbols | second.symbols
    real = not (first.has("i") or second.has("i"))
    difference = Node("sum", (first, negative(second)))
    if first.has("infinity") or second.has("infinity"):
        return _infinity(first) == _infinity(second) is not None
    if not symbols:
        return _equal_constants(first, second, difference, real=real)
    whole = first.has("factorial", "binomial", "gcd") or second.has("factorial", "binomial", "gcd")
    agreed = 0 if whole else _agree(difference, sorted(symbols), ROUNDS, real=real)
    if agreed == 0:
        agreed = _agree(difference, sorted(symbols), WHOLE, real=real)
    return agreed >= ENOUGH


def _equal_constants(first: Node, second: Node, difference: Node, *, real: bool) -> bool:
    try:
        one, other = Exact({}).value(first), Exact({}).value(second)
        if one is not None and other is not None:
            return one == other
        return is_zero(difference, {}, real=real)
    except Undefined:
        return False


def _agree(difference: Node, symbols: list[str], rounds: tuple[tuple[int, int], ...], *, real: bool) -> int:
    """At how many points the difference is zero; -1 if it is not zero at one of them."""
    agreed = 0
    for point in points(symbols, rounds):
        try:
            if not is_zero(difference, point, real=real):
                return -1
            agreed += 1
            if agreed == MOST:
                return agreed
        except Undefined:
            continue
    return agreed


def points(symbols: list[str], rounds: tuple[tuple[int, int], ...]) -> Iterator[dict[str, Fraction]]:
    """Points that are the same on every machine, with a different value for every symbol."""
    for number_of_round, (low, high) in enumerate(rounds):
        generator = random.Random(f"{number_of_round} {' '.join(symbols)}")
        scale = 1 if rounds is WHOLE else DENOMINATOR
        yield {symbol: Fraction(generator.randint(low, high), scale) for symbol in symbols}


def proportional(first: Node, second: Node) -> int:
    """The sign of c if `first` is c times `second` at every point for one constant c; 0 if there is no such c.

    Neither may vanish, and both must have the same variables.
    """
    if first.symbols != second.symbols or not first.symbols:
        return 0
    symbols = sorted(first.symbols)
    real = not (first.has("i") or second.has("i"))
    base = next(iter(points(symbols, ROUNDS)))
    try:
        if is_zero(first, base, real=real) or is_zero(second, base, real=real):
            return 0
    except Undefined:
        return 0
    at_base = {symbol: number(value) for symbol, value in base.items()}
    crossed = Node(
        "sum",
        (
            Node("product", (first, replaced(second, at_base))),
            negative(Node("product", (second, replaced(first, at_base)))),
        ),
    )
    if _agree(crossed, symbols, ROUNDS, real=real) < ENOUGH:
        return 0
    return sign_of(replaced(Node("product", (first, second)), at_base))


def replaced(node: Node, values: dict[str, Node]) -> Node:
    if node.kind == "symbol":
        return values.get(node.name, node)
    if not node.parts:
        return node
    return Node(node.kind, tuple(replaced(part, values) for part in node.parts), node.value, node.name)


def sign_of(node: Node) -> int:
    """The sign of a constant, -1, 0 or 1; raises NotAValueError if it is not real."""
    value = Exact({}).value(node)
    if value is not None:
        return (value > 0) - (value < 0)
    if is_zero(node, {}, real=True):
        return 0
    first = Numeric({}, FIRST_BITS, real=True)
    first.value(node)
    exact = Numeric({}, FIRST_BITS + 2 * int(first.weight), real=True)
    return 1 if exact.value(node) > 0 else -1


def _infinity(node: Node) -> int | None:
    """The sign of an infinite answer; None if infinity is only part of it."""
    if node.kind == "negative":
        inner = _infinity(node.parts[0])
        return None if inner is None else -inner
    return 1 if node.kind == "constant" and node.name == "infinity" else None
