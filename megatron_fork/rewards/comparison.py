"""Whether two answers are equal: part by part within a kind, and between kinds only if they are spellings of one thing."""

from __future__ import annotations

from megatron_fork.rewards.equality import equal, proportional
from megatron_fork.rewards.intervals import intervals, same
from megatron_fork.rewards.nodes import Node, negative, number, product
from megatron_fork.rewards.rules import Rules
from megatron_fork.rewards.score import NotAValueError
from megatron_fork.rewards.units import CONVERTED, Unit
from megatron_fork.rewards.values import (
    Brackets,
    Combined,
    Items,
    Matrix,
    Named,
    NumberSet,
    Ratio,
    Relation,
    Scalar,
    Value,
    describe,
)

# A list may have at most this many times the parts of the set that it is compared with: every pair costs a comparison.
MOST_REPETITIONS = 3

DEGREE: Unit = (("degree", 1),)
RADIAN: Unit = (("radian", 1),)
TURNED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


def compare(reference: Value, claimed: Value, rules: Rules) -> tuple[bool, str]:
    """Whether they are equal, and the rest of a sentence about `claimed`. Raises NotAValueError if that cannot be decided."""
    reference, claimed = _as_named(reference), _as_named(claimed)
    if isinstance(reference, Named) or isinstance(claimed, Named):
        return _compare_named(reference, claimed, rules)
    match reference, claimed:
        case Scalar(), Scalar():
            return _compare_scalars(reference, claimed, rules)
        case Items(), Items() if not _all_relations(reference, claimed):
            return _compare_items(reference, claimed, rules)
        case Brackets(), Brackets():
            if (reference.opening, reference.closing) != (claimed.opening, claimed.closing):
                return False, f"is {describe(claimed)} and not {describe(reference)}"
            return _in_order(reference.items, claimed.items, rules)
        case (Brackets(), Items()) | (Items(), Brackets()):
            return _compare_assignments(reference, claimed, rules)
        case Matrix(), Matrix():
            return _compare_matrices(reference, claimed, rules)
        case (Matrix(), Brackets()) | (Brackets(), Matrix()):
            return _in_order(_column(reference), _column(claimed), rules)
        case Ratio(), Ratio():
            if reference.clock != claimed.clock:
                return False, "is a time of the day, or the answer is one"
            items = [tuple(Scalar(node) for node in side.items) for side in (reference, claimed)]
            return _in_order(items[0], items[1], rules)
        case NumberSet(), NumberSet():
            return reference == claimed, "is compared as a set"
    return _compare_sets(reference, claimed)


def _as_named(value: Value) -> Value:
    """`2x+3 = y` as `y = 2x+3`."""
    if isinstance(value, Relation) and value.signs == ("=",) and not any(side.unit for side in value.sides[1:]):
        left, right = value.sides
        if right.node.kind == "symbol" and left.node.kind != "symbol" and right.node.name not in left.node.symbols:
            return Named(right.node.name, frozenset((right.node.name,)), left)
    return value


def _compare_named(reference: Value, claimed: Value, rules: Rules) -> tuple[bool, str]:
    if isinstance(reference, Named) and isinstance(claimed, Named):
        if reference.name == claimed.name or {reference.name, claimed.name} <= _names_of_a_function(reference, claimed):
            return compare(reference.value, claimed.value, rules)
        return _compare_sets(_as_relation(reference), _as_relation(claimed))
    if isinstance(reference, Named):
        if isinstance(claimed, Relation):
            return _compare_sets(_as_relation(reference), claimed)
        if isinstance(claimed, Items) and _one_name(claimed) == reference.name:
            claimed = _unnamed(claimed)  # `x = 2, x = 3` for `x = 2, 3`
        return compare(reference.value, claimed, rules)
    assert isinstance(claimed, Named)
    if isinstance(reference, Relation):
        return _compare_sets(reference, _as_relation(claimed))
    value = claimed.value
    if isinstance(value, Scalar) and claimed.letters & value.node.symbols:
        return False, f"names {claimed.name} by itself"
    if isinstance(reference, Scalar) and not reference.node.symbols and len(claimed.name) == 1:
        exact = reference.node.is_literal or (isinstance(value, Scalar) and value.node.is_literal)
        if exact and rules.named_numbers == "refuse":
            return False, "is an equation, and the answer is a number"
    return compare(reference, value, rules)


def _names_of_a_function(*sides: Named) -> frozenset[str]:
    """`y` and `f(x)`, if the value is a function of x."""
    applied = [side.name for side in sides if side.name.endswith(")") and side.name[1:2] == "("]
    return frozenset(("y", *applied)) if len(applied) == 1 else frozenset()


def _as_relation(value: Value) -> Value:
    if isinstance(value, Named) and isinstance(value.value, Scalar) and len(value.name) == 1:
        return Relation((Scalar(Node("symbol", name=value.name)), value.value), ("=",))
    return value


def _compare_scalars(reference: Scalar, claimed: Scalar, rules: Rules) -> tuple[bool, str]:
    if claimed.node.symbols - reference.node.symbols:
        return False, "has variables that the answer does not have"
    if claimed.node.bases != reference.node.bases:
        return False, "is not in the base of the answer"
    if rules.unevaluated == "refuse" and reference.node.is_literal and not claimed.node.is_literal:
        return False, "is not evaluated"
    if reference.unit and claimed.unit and reference.unit != claimed.unit:
        converted = _converted(reference, claimed)
        if converted is None:
            return False, f"is in {_shown(claimed.unit)} and not in {_shown(reference.unit)}"
        return equal(*converted), "is compared in one unit"
    angle = _angle(reference, claimed)
    if angle is not None:
        return equal(*angle), "is compared as an angle"
    return equal(reference.node, claimed.node), "is compared by its exact value"


def _converted(reference: Scalar, claimed: Scalar) -> tuple[Node, Node] | None:
    sides = []
    for side in (reference, claimed):
        name, power = side.unit[0]
        if name in CONVERTED and power == 1 and len(side.unit) == 1:
            unit, factor = CONVERTED[name]
            side = Scalar(product([number(factor), side.node]), ((unit, 1),))
        if side.unit == DEGREE:
            side = Scalar(Node("degrees", (side.node,)), RADIAN)
        sides.append(side)
    return (sides[0].node, sides[1].node) if sides[0].unit == sides[1].unit else None


def _angle(reference: Scalar, claimed: Scalar) -> tuple[Node, Node] | None:
    """Degrees compared with a multiple of pi without a unit, which is in radians."""
    for one, other in ((reference, claimed), (claimed, reference)):
        if one.unit == DEGREE and not other.unit and other.node.has("pi"):
            return Node("degrees", (one.node,)), other.node
    return None


def _shown(unit: Unit) -> str:
    return " ".join(name if power == 1 else f"{name}^{power}" for name, power in unit)


def _in_order(left: tuple[Value, ...], right: tuple[Value, ...], rules: Rules) -> tuple[bool, str]:
    if len(left) != len(right):
        return False, f"has {len(right)} parts and not {len(left)}"
    for place, (one, other) in enumerate(zip(left, right, strict=True), start=1):
        if isinstance(other, Named) and not isinstance(one, Named):
            return False, f"has a name in part {place}"
        same_value, how = compare(one, other, rules)
        if not same_value:
            return False, f"differs in part {place}, which {how}"
    return True, "equals the reference answer part by part"


def _compare_items(reference: Items, claimed: Items, rules: Rules) -> tuple[bool, str]:
    named = [all(isinstance(item, Named) for item in side.items) for side in (reference, claimed)]
    if any(named) and reference.items and claimed.items:
        if not named[0]:
            stated = claimed.joined == "or" or all(
                "_" in item.name for item in claimed.items if isinstance(item, Named)
            )
            if _one_name(claimed) is None or (rules.named_numbers == "refuse" and not stated):
                return False, "is equations, and the answer is values"
            claimed = _unnamed(claimed)
        elif not named[1] or _one_name(reference) is not None:
            if named[1] and _one_name(claimed) != _one_name(reference):
                return False, "names other things than the answer"
            if not named[1] and _one_name(reference) is None:
                return _in_order(_by_name(reference), claimed.items, rules)
            reference, claimed = _unnamed(reference), _unnamed(claimed)
    return _unordered(list(reference.items), list(claimed.items), rules, reference.braces or claimed.braces)


def _unordered(left: list[Value], right: list[Value], rules: Rules, distinct: bool) -> tuple[bool, str]:
    if len(right) > MOST_REPETITIONS * max(len(left), 2):
        return False, f"has {len(right)} parts and not {len(left)}"
    if distinct:
        left, right = _distinct(left, rules), _distinct(right, rules)
    if len(left) != len(right):
        return False, f"has {len(right)} parts and not {len(left)}"
    for place, one in enumerate(left, start=1):
        found = next((at for at, other in enumerate(right) if _equal_quietly(one, other, rules)), None)
        if found is None:
            return False, f"has no part that equals part {place} of the answer"
        del right[found]
    return True, "has the parts of the reference answer"


def _equal_quietly(one: Value, other: Value, rules: Rules) -> bool:
    if isinstance(other, Named) != isinstance(one, Named):
        return False
    return compare(one, other, rules)[0]


def _distinct(items: list[Value], rules: Rules) -> list[Value]:
    kept: list[Value] = []
    for item in items:
        if not any(_equal_quietly(item, other, rules) for other in kept):
            kept.append(item)
    return kept


def _one_name(items: Items) -> str | None:
    """The letter that names all parts, without its index: `x_1 = 2, x_2 = 3`, `x = 2` or `x = 3`."""
    names = {item.name.partition("_")[0] if isinstance(item, Named) else "" for item in items.items}
    return names.pop() or None if len(names) == 1 else None


def _unnamed(items: Items) -> Items:
    return Items(tuple(item.value if isinstance(item, Named) else item for item in items.items), items.braces)


def _by_name(items: Items) -> tuple[Value, ...]:
    named = sorted((item for item in items.items if isinstance(item, Named)), key=lambda item: item.name)
    return tuple(item.value for item in named)


def _compare_assignments(reference: Value, claimed: Value, rules: Rules) -> tuple[bool, str]:
    """`x = 2, y = -3` compared with the point (2,-3): values in the order of their names."""
    sides = []
    for side in (reference, claimed):
        if isinstance(side, Items):
            names = [item.name for item in side.items if isinstance(item, Named)]
            if len(set(names)) != len(side.items) or side.braces or side.joined == "or" or _one_name(side) is not None:
                return False, f"is {describe(claimed)} and not {describe(reference)}"
            sides.append(_by_name(side))
        else:
            assert isinstance(side, Brackets)
            if (side.opening, side.closing) != ("(", ")"):
                return False, f"is {describe(claimed)} and not {describe(reference)}"
            sides.append(side.items)
    return _in_order(sides[0], sides[1], rules)


def _compare_matrices(reference: Matrix, claimed: Matrix, rules: Rules) -> tuple[bool, str]:
    shapes = [(len(side.rows), len(side.rows[0]), side.determinant) for side in (reference, claimed)]
    if shapes[0] != shapes[1]:
        return False, "is a matrix of another shape"
    cells = [tuple(cell for row in side.rows for cell in row) for side in (reference, claimed)]
    return _in_order(cells[0], cells[1], rules)


def _column(value: Value) -> tuple[Value, ...]:
    """The parts of a point, or of a matrix of one column."""
    if isinstance(value, Matrix):
        if value.determinant or len(value.rows[0]) > 1 or len(value.rows) < 2:
            raise NotAValueError("is a matrix, or the answer is one")
        return tuple(row[0] for row in value.rows)
    assert isinstance(value, Brackets)
    if (value.opening, value.closing) != ("(", ")"):
        raise NotAValueError("has the brackets of an interval")
    return value.items


def _all_relations(*sides: Items) -> bool:
    return all(isinstance(item, Relation) for side in sides for item in side.items) and all(
        side.items for side in sides
    )


def _compare_sets(reference: Value, claimed: Value) -> tuple[bool, str]:
    """Compare relations and other sets of intervals."""
    if isinstance(reference, Relation) and isinstance(claimed, Relation):
        return _compare_relations(reference, claimed)
    kinds = (Relation, Combined, NumberSet)
    if not isinstance(reference, kinds) and not isinstance(claimed, kinds) and not isinstance(reference, Items):
        return False, f"is {describe(claimed)} and not {describe(reference)}"
    expected, found = intervals(reference), intervals(claimed)
    if expected is None or found is None:
        if reference == claimed:
            return True, "is the reference answer"
        return False, f"is {describe(claimed)} and not {describe(reference)}"
    return same(expected, found), "is compared as a set of numbers"


def _compare_relations(reference: Relation, claimed: Relation) -> tuple[bool, str]:
    symbols = [frozenset().union(*(side.node.symbols for side in each.sides)) for each in (reference, claimed)]
    if symbols[0] != symbols[1]:
        return False, "is a relation of other variables"
    sides = [_as_difference(each) for each in (reference, claimed)]
    if sides[0] is not None and sides[1] is not None:
        (first, sign), (second, other) = sides[0], sides[1]
        factor = proportional(first, second)
        turned = TURNED.get(other, other) if factor < 0 else other
        if factor and turned == sign:
            return True, "is the relation of the answer"
    expected, found = intervals(reference), intervals(claimed)
    if expected is None or found is None:
        return reference == claimed, "is compared as a relation"
    return same(expected, found), "is compared as a set of numbers"


def _as_difference(relation: Relation) -> tuple[Node, str] | None:
    if len(relation.signs) != 1 or any(side.unit for side in relation.sides):
        return None
    left, right = relation.sides
    return Node("sum", (left.node, negative(right.node))), relation.signs[0]
