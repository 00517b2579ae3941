"""The values that an answer may have, each with its parts in the order of the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_fork.rewards.nodes import Node
from megatron_fork.rewards.units import Unit

Joined = Literal[",", "and", "or"]


@dataclass(frozen=True)
class Scalar:
    """A number or expression, with its unit if it has one."""

    node: Node
    unit: Unit = ()


@dataclass(frozen=True)
class Brackets:
    """`(1,2)` or `[1,2)`: a point, or an interval if there are two parts; vectors of one column are points too."""

    opening: str
    closing: str
    items: tuple[Value, ...]


@dataclass(frozen=True)
class Items:
    """A list in any order and the word that joined it; with `braces` it is a set, in which nothing counts twice."""

    items: tuple[Value, ...]
    braces: bool = False
    joined: Joined = ","


@dataclass(frozen=True)
class Matrix:
    rows: tuple[tuple[Value, ...], ...]
    determinant: bool = False


@dataclass(frozen=True)
class Combined:
    r"""Sets joined by `\cup`, `\cap` or `\setminus`."""

    joined: Literal["cup", "cap", "setminus"]
    parts: tuple[Value, ...]


@dataclass(frozen=True)
class NumberSet:
    """The real numbers, the integers and so on, by their letter."""

    letter: str


@dataclass(frozen=True)
class Ratio:
    """A ratio `3:4`, or with `clock` a time of the day `3:04`."""

    items: tuple[Node, ...]
    clock: bool = False


@dataclass(frozen=True)
class Relation:
    """Sides and the relations between them: `=`, `<`, `<=`, `>`, `>=`, `!=`."""

    sides: tuple[Scalar, ...]
    signs: tuple[str, ...]


@dataclass(frozen=True)
class Named:
    """`x = 5`, `f(x) = x^2`, `(p,q) = (3,2)`: `letters` are the variables that the name holds."""

    name: str
    letters: frozenset[str]
    value: Value


Value = Scalar | Brackets | Items | Matrix | Combined | NumberSet | Ratio | Relation | Named


def describe(value: Value) -> str:
    """What `value` is, for a reason."""
    match value:
        case Scalar():
            return "one value"
        case Brackets():
            return f"{value.opening}...{value.closing} of {len(value.items)}"
        case Items():
            return f"a {'set' if value.braces else 'list'} of {len(value.items)}"
        case Matrix():
            return "a determinant" if value.determinant else f"a matrix of {len(value.rows)} rows"
        case Combined() | NumberSet():
            return "a set"
        case Ratio():
            return "a ratio"
        case Relation():
            return "a relation"
        case Named():
            return f"{value.name} = {describe(value.value)}"
