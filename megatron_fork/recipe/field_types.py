"""Types of fields, each with its range and unit: pydantic checks them, and `docs/config.md` and the schema show them.

Pydantic is not imported here: worker processes and engines import the classes of settings too, but check none.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, Predicate, Unit

from megatron_fork.files import can_be_path


@dataclass(frozen=True)
class OneOf:
    """Text that is a key of a table."""

    names: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return {"type": "literal", "expected": list(self.names)}


@dataclass(frozen=True)
class EntryOf:
    """Text that is a key of a table, or the user's own as `module:name`."""

    names: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        entry = {"type": "literal", "expected": list(self.names)}
        return {"type": "union", "choices": [entry, {"type": "str", "strict": True, "pattern": f"^(?:{CUSTOM})$"}]}


@dataclass(frozen=True)
class Pattern:
    """Text that a regular expression matches."""

    expression: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return {**handler(source), "pattern": self.expression}


# `module:name` of something outside the package.
CUSTOM = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"
# The range that torch takes, in 64 bits.
Seed = Annotated[int, Ge(-(2**63)), Lt(2**64)]
PositiveInt = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
PositiveFraction = Annotated[float, Gt(0), Le(1)]
FractionBelowOne = Annotated[float, Ge(0), Lt(1)]
Tokens = Annotated[int, Ge(1), Unit("tokens")]
Mebibytes = Annotated[int, Ge(1), Unit("MiB")]
NonNegativeMebibytes = Annotated[int, Ge(0), Unit("MiB")]
Gibibytes = Annotated[float, Gt(0), Unit("GiB")]
Seconds = Annotated[float, Gt(0), Unit("s")]
Nats = Annotated[float, Gt(0), Unit("nats")]
# Here infinity has a meaning; every other number must be finite.
NatsOrInfinite = Annotated[Nats, "or infinite"]
# A leading `~` stands for the user's home.
FilePath = Annotated[str, Predicate(can_be_path)]


def bare(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A field's type without `None` and `Annotated`, and its annotations."""
    hint = without_none(hint)[0]
    return (get_args(hint)[0], hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())


def without_none(hint: Any) -> tuple[Any, bool]:
    """A field's type without `None`, and whether it may be `None`."""
    if get_origin(hint) not in (Union, UnionType):
        return hint, False
    (inner,) = (each for each in get_args(hint) if each is not NoneType)
    return inner, True


def is_path(hint: Any) -> bool:
    return any(isinstance(each, Predicate) and each.func is can_be_path for each in bare(hint)[1])


def may_be_infinite(hint: Any) -> bool:
    return "or infinite" in bare(hint)[1]


def unit_of(hint: Any) -> str:
    """The unit of a field; empty if it has none."""
    return next((each.unit for each in bare(hint)[1] if isinstance(each, Unit)), "")


def limits_of(hint: Any) -> str:
    """Range and unit of a field in words, such as `1 or more, in tokens`; empty if it has neither."""
    unit = unit_of(hint)
    infinite = "or infinite" if may_be_infinite(hint) else ""
    return ", ".join(filter(None, [range_of(hint)[0], infinite, unit and f"in {unit}"]))


def choices_of(hint: Any) -> tuple[str, ...]:
    """The words that a field accepts; empty if it accepts any."""
    inner, annotated = bare(hint)
    tables = (each.names for each in annotated if isinstance(each, OneOf | EntryOf))
    return get_args(inner) if get_origin(inner) is Literal else next(tables, ())


def may_be_custom(hint: Any) -> bool:
    """Whether a field accepts `module:name` besides its choices."""
    return any(isinstance(each, EntryOf) for each in bare(hint)[1])


def range_of(hint: Any) -> tuple[str, str]:
    """The range of a field, such as `0 or more` or `in (0, 1]`, and words for other numbers: `negative`, `outside (0, 1]`."""
    low = high = ""
    wanted, otherwise = "", ""
    for each in bare(hint)[1]:
        if isinstance(each, Ge):
            low, wanted = f"[{each.ge}", f"{each.ge} or more"
            otherwise = "negative" if each.ge == 0 else f"below {each.ge}"
        elif isinstance(each, Gt):
            low, wanted = f"({each.gt}", f"above {each.gt}"
            otherwise = "not positive" if each.gt == 0 else f"not above {each.gt}"
        elif isinstance(each, Le):
            high = f"{each.le}]"
        elif isinstance(each, Lt):
            high = f"{each.lt})"
    return (f"in {low}, {high}", f"outside {low}, {high}") if high else (wanted, otherwise)
