"""Which tokens two selections differ in: counts, the tokens that differ most often, and places in the text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_fork.analysis.counting import Array
from megatron_fork.analysis.tokens import visible, visible_label

_AROUND = 8
"""Tokens that are shown before and after one that differs."""


@dataclass(frozen=True)
class Example:
    """Consecutive tokens of a response: texts, and for each whether `a`, `b`, both (`ab`) or none selects it."""

    response: int
    start: int
    texts: list[str]
    marks: list[str]


@dataclass(frozen=True)
class MaskComparison:
    """Two selections of the same tokens."""

    tokens: int
    selected: tuple[int, int]
    both: int
    only: tuple[list[tuple[str, int]], list[tuple[str, int]]]
    """Of `a` and of `b`: tokens that it alone selects, most frequent first, with how often."""
    examples: list[Example]
    norms: tuple[float, float] | None = None
    """Of the gradients of both updates; None if they were not computed."""
    cosine: float | None = None
    """Between the gradients; NaN where one of them is 0."""

    @property
    def differ(self) -> float:
        """Share of all tokens that one of the two selects."""
        return (sum(self.selected) - 2 * self.both) / max(1, self.tokens)

    @property
    def jaccard(self) -> float:
        """Tokens that both select among those that any selects; 1 if none selects any."""
        any_ = sum(self.selected) - self.both
        return self.both / any_ if any_ else 1.0


def compared(
    a_t: Array, b_t: Array, texts: Sequence[Sequence[str]], *, rows: int = 20, examples: int = 3
) -> MaskComparison:
    """Compare two selections, bool `[response tokens]`, of responses whose tokens have these texts."""
    ends = np.cumsum([len(each) for each in texts])
    flat = [text for each in texts for text in each]
    only = tuple(
        Counter(visible_label(flat[place]) for place in np.flatnonzero(mask_t)).most_common(rows)
        for mask_t in (a_t & ~b_t, b_t & ~a_t)
    )
    return MaskComparison(
        tokens=len(a_t),
        selected=(int(a_t.sum()), int(b_t.sum())),
        both=int((a_t & b_t).sum()),
        only=(only[0], only[1]),
        examples=[
            _example(number, a_t[end - len(each) : end], b_t[end - len(each) : end], each)
            for number, each, end in _most_different(a_t != b_t, texts, ends, examples)
        ],
    )


def _most_different(
    differ_t: Array, texts: Sequence[Sequence[str]], ends: Array, count: int
) -> list[tuple[int, Sequence[str], int]]:
    """(number, texts, end) of the responses with the most tokens that differ."""
    counts = [int(differ_t[end - len(each) : end].sum()) for each, end in zip(texts, ends, strict=True)]
    order = sorted(
        (number for number in range(len(texts)) if counts[number]), key=lambda number: (-counts[number], number)
    )
    return [(number, texts[number], int(ends[number])) for number in order[:count]]


def _example(number: int, a_t: Array, b_t: Array, texts: Sequence[str]) -> Example:
    """The surroundings of the first token that differs."""
    first = int(np.flatnonzero(a_t != b_t)[0])
    start = max(0, first - _AROUND)
    places = range(start, min(len(texts), first + 3 * _AROUND))
    marks = [("a" if a_t[place] else "") + ("b" if b_t[place] else "") for place in places]
    return Example(number, start, [visible(texts[place]) for place in places], marks)


def comparison_record(found: MaskComparison) -> dict[str, Any]:
    """The comparison as JSON."""
    return {
        "tokens": found.tokens,
        "selected": {"a": found.selected[0], "b": found.selected[1], "both": found.both},
        "share_that_differs": found.differ,
        "jaccard": found.jaccard,
        "gradient_norms": None if found.norms is None else {"a": found.norms[0], "b": found.norms[1]},
        "gradient_cosine": found.cosine,
        "only_a": [{"text": text, "count": count} for text, count in found.only[0]],
        "only_b": [{"text": text, "count": count} for text, count in found.only[1]],
        "examples": [vars(each) for each in found.examples],
    }
