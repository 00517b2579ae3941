"""What `selection.weights` may name: a weight for every chosen token, 0 for those that are left out.

A new weighting is one file with a function and one entry here. The user's own is given as `module:name`, where the name is such
a function, or a `Weighting`. Nothing here needs torch, since settings are checked with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from megatron_fork.recipe import check_part, entry_named, is_custom

if TYPE_CHECKING:  # settings are checked without torch
    from megatron_fork.selection.weights.chosen_tokens import ChosenTokens, Weighed


@dataclass(frozen=True)
class Weighting:
    """A weight for every chosen token."""

    weigh: str | Callable[[ChosenTokens], Weighed]
    """A function, or `module:function`, which is imported when it is first called."""
    samples: bool = False
    """Tokens are left out by chance, and those that stay stand for them: they still count in denominators, and the model
    reads no response beyond its last token that stays. Such a weighting is applied after all others."""
    compares_with_old: bool = False
    """It reads how far the policy is from an earlier one, where `selection.m2po.before` says which."""


def _of_file(name: str, **needs: Any) -> Weighting:
    return Weighting(f"megatron_fork.selection.weights.{name}:{name}", **needs)


WEIGHTINGS: dict[str, Weighting] = {
    "nat": _of_file("nat", samples=True),
    "quadrants": _of_file("quadrants"),
    "soft_entropy": _of_file("soft_entropy"),
    "stapo": _of_file("stapo"),
    "m2po": _of_file("m2po", compares_with_old=True),
    "surprisal_band": _of_file("surprisal_band"),
}


@cache
def weighting_named(name: str) -> Weighting:
    """The weighting of this name; raises `ConfigError` if there is none."""
    weighting = entry_named("selection.weights", name, WEIGHTINGS, "weighting", made=_made)
    if is_custom(name):
        check_part("selection.weights", name, "weigh", weighting.weigh)
    return weighting


def _made(found: object) -> Weighting | None:
    return found if isinstance(found, Weighting) else Weighting(found) if callable(found) else None
