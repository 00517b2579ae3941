"""How entropies are counted, by the analyses and the page alike: log bins, sums in bins, and the numbers of the paper."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

DECIDED = 0.01
"""Nats; below it a token is all but decided."""
PAPER_ENTROPY = {"share_below_0.01": 0.5064, "p80": 0.672}
"""Qwen3-8B on AIME24 and 25, temperature 1, more than a million tokens (arXiv 2506.01939)."""
BINS_PER_DECADE = 8
# Up to 316 nats: the entropy of more words than there are. The first bin holds all that is smaller, also what rounding left
# below 0.
EDGES: Array = 10.0 ** (np.arange(-6 * BINS_PER_DECADE, 2.5 * BINS_PER_DECADE + 1) / BINS_PER_DECADE)


def log_bins(entropy_t: Array, edges: Array = EDGES) -> Array:
    """`[tokens]`: 0 below all edges, n from edge n - 1 to edge n; what is above all is in the last, of `len(edges)` bins."""
    return np.minimum(np.searchsorted(edges, entropy_t, side="right"), len(edges) - 1)


@dataclass
class Sums:
    """Count and sum of entropies in each of `bins` bins."""

    bins: int
    count: Array = field(init=False)
    total: Array = field(init=False)

    def __post_init__(self) -> None:
        self.count = np.zeros(self.bins, dtype=np.int64)
        self.total = np.zeros(self.bins)

    def add(self, bin_t: Array, entropy_t: Array) -> None:
        """Add tokens to their bins; bins past the last one are made."""
        count = np.bincount(bin_t, minlength=self.bins)
        total = np.bincount(bin_t, weights=entropy_t, minlength=self.bins)
        if len(count) > self.bins:
            self.count = np.pad(self.count, (0, len(count) - self.bins))
            self.total = np.pad(self.total, (0, len(count) - self.bins))
            self.bins = len(count)
        self.count += count
        self.total += total

    def merged(self, bins: int) -> Sums:
        """With so many neighbouring bins made one; their number must be divisible by it."""
        found = Sums(self.bins // bins)
        found.count, found.total = self.count.reshape(-1, bins).sum(1), self.total.reshape(-1, bins).sum(1)
        return found

    @property
    def mean(self) -> Array:
        """`[bins]` nats; NaN where there is no token."""
        return np.divide(self.total, self.count, out=np.full(self.bins, np.nan), where=self.count > 0)
