"""Expressions as trees of one type, exact and immutable, so that equal trees are equal values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Kind = Literal[
    "number", "symbol", "constant", "sum", "product", "quotient", "power", "negative", "root", "call", "degrees",
    "percent", "either",
]  # fmt: skip


@dataclass(frozen=True)
class Node:
    """`value`: of a number; `name`: of a symbol, constant or called function, or of the base in which a number is written.

    The kind `either` is plus or minus its part.
    """

    kind: Kind
    parts: tuple[Node, ...] = ()
    value: Fraction = Fraction(0)
    name: str = ""

    def walk(self) -> Iterator[Node]:
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(node.parts)

    @property
    def symbols(self) -> frozenset[str]:
        return frozenset(node.name for node in self.walk() if node.kind == "symbol")

    @property
    def bases(self) -> frozenset[str]:
        return frozenset(node.name for node in self.walk() if node.kind == "number" and node.name)

    def has(self, *names: str) -> bool:
        """Whether it contains a constant or function of one of these names."""
        return any(node.name in names for node in self.walk() if node.kind in ("constant", "call"))

    @property
    def is_literal(self) -> bool:
        r"""Whether it is a written number with nothing left to compute: `-3`, `3/4`, `1\frac12`, `-50\%`."""
        inner = self
        for outer in (("negative",), ("percent", "degrees"), ("negative",)):
            inner = inner.parts[0] if inner.kind in outer else inner
        if inner.kind == "quotient":
            return all(part.kind in ("number", "negative") and part.is_literal for part in inner.parts)
        return inner.kind == "number"


def number(value: Fraction | int) -> Node:
    return Node("number", value=Fraction(value))


def negative(node: Node) -> Node:
    return Node("negative", (node,))


def total(parts: list[Node]) -> Node:
    return parts[0] if len(parts) == 1 else Node("sum", tuple(parts))


def product(parts: list[Node]) -> Node:
    return parts[0] if len(parts) == 1 else Node("product", tuple(parts))


def with_sign(node: Node, sign: int) -> Node:
    """`node` with each plus-or-minus read as `sign` (1 or -1) times its part."""
    if node.kind == "either":
        part = with_sign(node.parts[0], sign)
        return part if node.value * sign > 0 else negative(part)
    if not node.parts:
        return node
    return Node(node.kind, tuple(with_sign(part, sign) for part in node.parts), node.value, node.name)
