"""A few of many responses, right and wrong ones in equal parts as far as there are both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def mixture(responses: Sequence[T], count: int, is_right: Callable[[T], bool]) -> list[T]:
    """At most `count` of the responses, in their order, spread evenly over the right ones and over the wrong ones."""
    right = [place for place, response in enumerate(responses) if is_right(response)]
    wrong = [place for place, response in enumerate(responses) if not is_right(response)]
    of_right = min(len(right), max(count // 2, count - len(wrong)))
    places = spread(right, of_right) + spread(wrong, min(len(wrong), count - of_right))
    return [responses[place] for place in sorted(places)]


def spread(places: Sequence[int], count: int) -> list[int]:
    """`count` of the places, no more than there are, at equal distances from the first on."""
    return [places[number * len(places) // count] for number in range(count)]
