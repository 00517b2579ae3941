"""One figure, the goal that it has, and what was read from a part's files."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Goal:
    """`bound` is to be reached from above (`at_most`) or from below."""

    bound: float
    at_most: bool = True

    def reached(self, value: float) -> bool:
        """NaN reaches nothing."""
        return value <= self.bound if self.at_most else value >= self.bound

    def __str__(self) -> str:
        return f"at {'most' if self.at_most else 'least'} {self.bound:g}"


@dataclass(frozen=True)
class Figure:
    """A number or a word, in `unit`; no value where it could not be had, with the reason in `note`."""

    name: str
    value: float | str | None
    unit: str = ""
    goal: Goal | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """`reached`, `missed`, or nothing where there is no goal or no number to compare."""
        if self.goal is None or not isinstance(self.value, int | float):
            return ""
        return "reached" if self.goal.reached(self.value) else "missed"

    @property
    def words(self) -> str:
        """The value as it is printed."""
        if self.value is None:
            return self.note or "not had"
        shown = self.value if isinstance(self.value, str) else shortened(self.value)
        return f"{shown} {self.unit}".rstrip()

    def as_data(self) -> dict[str, Any]:
        data = {name: value for name, value in asdict(self).items() if value not in (None, "")}
        data.pop("goal", None)
        if self.goal:
            data |= {"goal": str(self.goal), "verdict": self.verdict or "no figure"}
        return data


@dataclass
class Reading:
    """What a part's files say: figures, what is wrong, and what else should be known. Wrong is an error, slow never is."""

    figures: list[Figure] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def shortened(value: float) -> str:
    """Three figures, and whole numbers whole."""
    if value != value or value in (float("inf"), float("-inf")):
        return str(value)
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"
