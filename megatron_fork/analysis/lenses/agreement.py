"""How far two lenses mean the same tokens: overlap of the top share (Jaccard), and rank correlation (Spearman)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from megatron_fork.evaluation import bootstrap_interval

Array = np.ndarray[Any, np.dtype[np.float64]]
_FEWEST = 3
"""Tokens of a response that two lenses must share for it to count."""


@dataclass(frozen=True)
class Agreement:
    """Means over responses with their bootstrap intervals."""

    responses: int
    tokens: int
    jaccard: float
    jaccard_interval: tuple[float, float]
    by_chance: float
    """The Jaccard overlap that two unrelated lenses of these lengths have about."""
    spearman: float
    spearman_interval: tuple[float, float]


def shared(share: float, count: int) -> int:
    """ceil(share n), exact for the share as written: 0.07 of 100 is 7, which in floats is slightly more."""
    exact = Fraction(share).limit_denominator(10**9)
    return -(-exact.numerator * count // exact.denominator)


def top_share(values: Array, share: float) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The `shared` largest; of equal ones the first."""
    count = shared(share, len(values))
    marked = np.zeros(len(values), dtype=bool)
    marked[np.argsort(-values, kind="stable")[:count]] = True
    return marked


def jaccard(first: np.ndarray[Any, np.dtype[np.bool_]], second: np.ndarray[Any, np.dtype[np.bool_]]) -> float:
    """|both| / |either|."""
    return float((first & second).sum() / max(1, (first | second).sum()))


def ranks(values: Array) -> Array:
    """Ranks from 1; equal values share the mean of theirs."""
    order = np.argsort(values, kind="stable")
    _, inverse, counts = np.unique(values[order], return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    found = np.empty(len(values))
    found[order] = (ends - (counts - 1) / 2)[inverse]
    return found


def spearman(first: Array, second: Array) -> float:
    """The correlation of the ranks; NaN where one of both is constant."""
    x, y = ranks(first), ranks(second)
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float((x**2).sum() * (y**2).sum()))
    return float((x * y).sum()) / scale if scale > 0.0 else math.nan


def why_not(first: Sequence[Array], second: Sequence[Array], name: str, other: str) -> str:
    """Why two lenses of these names have no `agreement`, in a few words."""
    counts, equal = 0, set()
    for x, y in zip(first, second, strict=True):
        both = np.isfinite(x) & np.isfinite(y)
        if int(both.sum()) >= _FEWEST:
            counts += 1
            equal |= {of for of, values in ((name, x[both]), (other, y[both])) if np.ptp(values) == 0.0}
    if not counts:
        return f"nothing has {_FEWEST} tokens that both speak of"
    return f"where both speak of {_FEWEST} tokens, all are equal for {' or '.join(sorted(equal))}"


def agreement(first: Sequence[Array], second: Sequence[Array], *, share: float, seed: int) -> Agreement | None:
    """Over the tokens of each response that both lenses have a value for; None if there is no such response."""
    overlaps, correlations, chances, tokens = [], [], [], 0
    for x, y in zip(first, second, strict=True):
        both = np.isfinite(x) & np.isfinite(y)
        count = int(both.sum())
        if count < _FEWEST or math.isnan(correlation := spearman(x[both], y[both])):
            continue
        tokens += count
        overlaps.append(jaccard(top_share(x[both], share), top_share(y[both], share)))
        correlations.append(correlation)
        marked = shared(share, count)
        chances.append((marked / count) / (2 - marked / count))
    if not overlaps:
        return None
    return Agreement(
        len(overlaps),
        tokens,
        float(np.mean(overlaps)),
        bootstrap_interval(overlaps, seed=seed),
        float(np.mean(chances)),
        float(np.mean(correlations)),
        bootstrap_interval(correlations, seed=seed),
    )
