r"""Sets of real numbers as intervals: `[1,2)`, `1 \le x < 2`, `|x| < 2`, `x \ne 4`, `\mathbb{R} \setminus \{4\}`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from megatron_fork.rewards.equality import equal, replaced, sign_of
from megatron_fork.rewards.nodes import Node, negative, number
from megatron_fork.rewards.score import NotAValueError
from megatron_fork.rewards.values import Brackets, Combined, Items, NumberSet, Relation, Scalar, Value

INFINITY = Node("constant", name="infinity")
FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}


@dataclass(frozen=True)
class Interval:
    low: Node
    high: Node
    low_closed: bool
    high_closed: bool

    def equals(self, other: Interval) -> bool:
        closed = (self.low_closed, self.high_closed) == (other.low_closed, other.high_closed)
        return closed and equal(self.low, other.low) and equal(self.high, other.high)

    def mirrored(self) -> Interval:
        return Interval(_minus(self.high), _minus(self.low), self.high_closed, self.low_closed)


def _minus(node: Node) -> Node:
    return node.parts[0] if node.kind == "negative" else negative(node)


def intervals(value: Value) -> list[Interval] | None:
    """The intervals whose union is `value`; None if it is not a set of real numbers. Raises NotAValueError."""
    match value:
        case Brackets():
            return _of_brackets(value)
        case NumberSet():
            return [Interval(_minus(INFINITY), INFINITY, False, False)] if value.letter == "R" else None
        case Relation():
            return _of_relation(value)
        case Combined(joined="cup"):
            return _joined(value.parts, points=True)
        case Combined(joined="setminus"):
            return _without_points(value)
        case Items(braces=False):
            found = _joined(value.items, points=False)
            return _common(found) if found is not None and value.joined == "and" else found
    return None


def _joined(parts: tuple[Value, ...], *, points: bool) -> list[Interval] | None:
    found: list[Interval] = []
    for part in parts:
        if points and isinstance(part, Items) and part.braces:
            nodes = [item.node for item in part.items if isinstance(item, Scalar) and not item.unit]
            if len(nodes) < len(part.items):
                return None
            found += [Interval(node, node, True, True) for node in nodes]
            continue
        if isinstance(part, Brackets) and not points:
            return None  # a list of points
        inner = intervals(part)
        if inner is None:
            return None
        found += inner
    return found


def _common(found: list[Interval]) -> list[Interval] | None:
    """The intersection of two half-lines, `x > -2` and `x < 3`; None if they are anything else."""
    if len(found) != 2:
        return None
    upward = [each for each in found if each.high.has("infinity") and not each.low.has("infinity")]
    downward = [each for each in found if each.low.has("infinity") and not each.high.has("infinity")]
    if len(upward) != 1 or len(downward) != 1:
        return None
    low, high = upward[0], downward[0]
    if sign_of(Node("sum", (high.high, negative(low.low)))) <= 0:
        return None
    return [Interval(low.low, high.high, low.low_closed, high.high_closed)]


def _of_brackets(value: Brackets) -> list[Interval] | None:
    if len(value.items) != 2 or not all(isinstance(item, Scalar) and not item.unit for item in value.items):
        return None
    low, high = (item.node for item in value.items if isinstance(item, Scalar))
    return [Interval(low, high, value.opening == "[", value.closing == "]")]


def _without_points(value: Combined) -> list[Interval] | None:
    whole, *rest = value.parts
    if not (isinstance(whole, NumberSet) and whole.letter == "R") or len(rest) != 1:
        return None
    removed = rest[0]
    if not isinstance(removed, Items) or not removed.braces or not removed.items:
        return None
    nodes = [item.node for item in removed.items if isinstance(item, Scalar) and not item.unit]
    if len(nodes) < len(removed.items):
        return None
    return _between(_sorted(nodes))


def _between(nodes: list[Node]) -> list[Interval]:
    ends = [_minus(INFINITY), *nodes, INFINITY]
    return [Interval(low, high, False, False) for low, high in pairwise(ends)]


def _sorted(nodes: list[Node]) -> list[Node]:
    ordered: list[Node] = []
    for node in nodes:
        place = 0
        while place < len(ordered) and sign_of(Node("sum", (node, negative(ordered[place])))) > 0:
            place += 1
        ordered.insert(place, node)
    return ordered


def _of_relation(relation: Relation) -> list[Interval] | None:
    if any(side.unit for side in relation.sides) or "=" in relation.signs:
        return None
    nodes = [side.node for side in relation.sides]
    if len(nodes) == 2:
        left, right = nodes
        sign = relation.signs[0]
        symbols = left.symbols | right.symbols
        if len(symbols) > 1 and left.kind != "symbol":
            left, right, sign = right, left, FLIPPED[sign]
        if len(symbols) == 1:
            middle: Node = Node("sum", (left, negative(right)))
            end = number(0)
        elif left.kind == "symbol" and left.name not in right.symbols:
            middle, end = left, right
        else:
            return None
        return _solved(middle, _half(sign, end))
    low, middle, high = nodes
    signs = relation.signs
    if signs[0] in (">", ">="):
        low, high, signs = high, low, (FLIPPED[signs[1]], FLIPPED[signs[0]])
    if low.symbols & middle.symbols or high.symbols & middle.symbols:
        return None
    return _solved(middle, [Interval(low, high, signs[0] == "<=", signs[1] == "<=")])


def _half(sign: str, end: Node) -> list[Interval]:
    if sign == "!=":
        return _between([end])
    if sign in ("<", "<="):
        return [Interval(_minus(INFINITY), end, False, sign == "<=")]
    return [Interval(end, INFINITY, sign == ">=", False)]


def _solved(middle: Node, where: list[Interval]) -> list[Interval] | None:
    """The values of the variable for which `middle`, linear in it or in an absolute value that is, lies in the intervals."""
    if middle.kind == "symbol":
        return where
    if len(middle.symbols) != 1:
        return None
    absolute = {node for node in middle.walk() if node.kind == "call" and node.name == "absolute" and node.symbols}
    if len(absolute) == 1:
        inner = absolute.pop()
        unknown = Node("symbol", name="the absolute value")
        outer = _exchanged(middle, inner, unknown)
        if outer.symbols != unknown.symbols:
            return None
        sizes = _solved(outer, where)
        return None if sizes is None else _solved(inner.parts[0], _of_absolute(sizes))
    if absolute:
        return None
    return _linear(middle, where)


def _linear(middle: Node, where: list[Interval]) -> list[Interval] | None:
    (name,) = middle.symbols
    offset = replaced(middle, {name: number(0)})
    slope = Node("sum", (replaced(middle, {name: number(1)}), negative(offset)))
    if not equal(Node("sum", (Node("product", (slope, Node("symbol", name=name))), offset)), middle):
        return None
    sign = sign_of(slope)
    if sign == 0:
        return None
    found = [
        replace(each, low=_back(each.low, slope, offset, sign), high=_back(each.high, slope, offset, sign))
        for each in where
    ]
    if sign < 0:
        found = [Interval(each.high, each.low, each.high_closed, each.low_closed) for each in reversed(found)]
    return found


def _back(end: Node, slope: Node, offset: Node, sign: int) -> Node:
    if end.has("infinity"):
        return end if sign > 0 else _minus(end)
    if equal(offset, number(0)) and equal(slope, number(1)):
        return end
    return Node("quotient", (Node("sum", (end, negative(offset))), slope))


def _exchanged(node: Node, old: Node, new: Node) -> Node:
    if node == old:
        return new
    return Node(node.kind, tuple(_exchanged(part, old, new) for part in node.parts), node.value, node.name)


def _of_absolute(sizes: list[Interval]) -> list[Interval]:
    """The numbers whose absolute values lie in `sizes`."""
    found: list[Interval] = []
    for size in sizes:
        low_sign = -1 if size.low.has("infinity") else sign_of(size.low)
        if low_sign < 0:
            if size.high.has("infinity") or sign_of(size.high) <= 0:
                raise NotAValueError("says something about an absolute value that is always or never true")
            found.append(Interval(_minus(size.high), size.high, size.high_closed, size.high_closed))
        elif low_sign == 0 and size.low_closed:
            raise NotAValueError("says something about an absolute value that is always true")
        else:
            found += [size.mirrored(), size]
    return found


def same(first: list[Interval], second: list[Interval]) -> bool:
    """Whether the two unions have the same intervals, in any order; nothing is merged."""
    if _symbols(second) - _symbols(first):
        return False
    left = list(second)
    for one in first:
        place = next((place for place, other in enumerate(left) if one.equals(other)), None)
        if place is None:
            return False
        del left[place]
    return not left


def _symbols(found: list[Interval]) -> frozenset[str]:
    return frozenset().union(*(each.low.symbols | each.high.symbols for each in found))
