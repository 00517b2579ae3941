"""The table of the tokens that fork: of each distinct text, how often it came, and its mean entropy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy

from megatron_fork.analysis.page.statistics import Statistics

# A mean over a few occurrences says little about a token: the table requires the first of these counts that leaves enough
# distinct tokens to rank. The paper's is 100.
MINIMUM_COUNTS = (100, 20, 10, 5, 3, 2, 1)
ENOUGH = 32
# Rows of the highest, of the lowest mean entropy, and of the most frequent.
ROWS_OF_EACH = 500


@dataclass(frozen=True)
class TokenRow:
    """`token`: its number in the vocabulary; `mean_entropy` in nats."""

    token: int
    count: int
    mean_entropy: float
    share_selected: float


@dataclass(frozen=True)
class TokenTable:
    """Rows by falling mean entropy, of the `ranked` tokens that occur at least `minimum_count` times, of `distinct` ones."""

    rows: list[TokenRow]
    minimum_count: int
    ranked: int
    distinct: int


def token_table(statistics: Statistics, texts: list[str], each: int = ROWS_OF_EACH) -> TokenTable:
    """Rank the distinct tokens; equal means are in the order of their texts."""
    counts = statistics.token_counts
    distinct = int(numpy.count_nonzero(counts))
    enough = min(ENOUGH, 0.75 * distinct)
    minimum = next(least for least in MINIMUM_COUNTS if least == 1 or numpy.count_nonzero(counts >= least) >= enough)
    ranked = numpy.flatnonzero(counts >= minimum)
    means = statistics.token_sums[ranked] / counts[ranked]
    order = sorted(range(len(ranked)), key=lambda place: (-means[place], texts[ranked[place]]))
    frequent = sorted(range(len(ranked)), key=lambda place: -counts[ranked[place]])[:each]
    kept = {*order[:each], *order[max(len(order) - each, 0) :], *frequent}
    rows = [
        TokenRow(
            token=int(ranked[place]),
            count=int(counts[ranked[place]]),
            mean_entropy=float(means[place]),
            share_selected=float(statistics.token_selected[ranked[place]] / counts[ranked[place]]),
        )
        for place in order
        if place in kept
    ]
    return TokenTable(rows, minimum, len(ranked), distinct)
