"""What is counted over every traced token: entropies by verdict, selection and position, and the distinct tokens.

Responses come in parts and are not kept. Counts of the histogram are exact. Percentiles come from bins of 0.2 % of their
value, so that any number of tokens takes the same memory.
"""

from __future__ import annotations

import numpy

from megatron_fork.analysis.counting import DECIDED, Sums, log_bins
from megatron_fork.analysis.counting import EDGES as ALL_EDGES
from megatron_fork.analysis.page.responses import VERDICTS, Part

LOWEST = 1e-4
"""Nats; what is smaller is in the first bin."""
EDGES = ALL_EDGES[ALL_EDGES > 0.99 * LOWEST].astype(numpy.float32)
# Of the 32 bits of a positive float, which are in the order of its value, those that number its bin.
_DROPPED_BITS = 14
_FINE_BINS = 1 << (31 - _DROPPED_BITS)
# First positions of the bins, counted from 1: each is longer than the one before by a half power of 2.
POSITIONS = numpy.unique(numpy.round(2 ** (numpy.arange(64) / 2)).astype(numpy.int64))


class Statistics:
    """Counts over the tokens of the responses whose entropy was measured."""

    def __init__(self) -> None:
        self.responses = 0
        self.not_finite = 0
        self.histogram = numpy.zeros((len(VERDICTS), 2, len(EDGES)), dtype=numpy.int64)
        """[verdict, selected, bin]: how many are below all edges, then in each bin; what is above all is in the last."""
        self._positions = Sums(len(VERDICTS) * len(POSITIONS))
        self._fine = numpy.zeros((len(VERDICTS), _FINE_BINS), dtype=numpy.int64)
        self._tokens, self._selected = Sums(0), Sums(0)

    def __bool__(self) -> bool:
        return bool(self.histogram.any())

    @property
    def tokens(self) -> int:
        return int(self.histogram.sum())

    @property
    def position_counts(self) -> numpy.ndarray:
        """[verdict, position], as are `position_sums`."""
        return self._positions.count.reshape(len(VERDICTS), len(POSITIONS))

    @property
    def position_sums(self) -> numpy.ndarray:
        return self._positions.total.reshape(len(VERDICTS), len(POSITIONS))

    @property
    def token_counts(self) -> numpy.ndarray:
        """[distinct tokens], as are `token_sums` of their entropies and `token_selected`, how many were."""
        return self._tokens.count

    @property
    def token_sums(self) -> numpy.ndarray:
        return self._tokens.total

    @property
    def token_selected(self) -> numpy.ndarray:
        return self._selected.total

    def add(self, part: Part, counted: numpy.ndarray) -> None:
        """Count the responses of a part that `counted` [responses] names; each has its entropies."""
        lengths = part.lengths
        self.responses += int(counted.sum())
        in_response = numpy.repeat(counted, lengths)
        finite = numpy.isfinite(part.entropy) & in_response
        self.not_finite += int(in_response.sum() - finite.sum())
        if not finite.any():
            return
        # Rounding may leave an entropy just below 0.
        entropy = numpy.maximum(part.entropy[finite], numpy.float32(0))
        selected = part.selected[finite].astype(numpy.int64)
        verdicts = numpy.repeat(numpy.array([facts.verdict for facts in part.facts], dtype=numpy.int64), lengths)
        verdict = verdicts[finite]
        position = (numpy.arange(len(part.tokens)) - numpy.repeat(part.starts[:-1], lengths))[finite] + 1
        _count(self.histogram, (verdict * 2 + selected) * len(EDGES) + log_bins(entropy, EDGES))
        _count(self._fine, verdict * _FINE_BINS + (entropy.view(numpy.int32) >> _DROPPED_BITS))
        place = verdict * len(POSITIONS) + numpy.searchsorted(POSITIONS, position, side="right") - 1
        self._positions.add(place, entropy)
        self._tokens.add(part.tokens[finite], entropy)
        self._selected.add(part.tokens[finite], selected)

    def below_decided(self) -> float:
        """Share of the tokens with an entropy below `DECIDED`."""
        first = int(numpy.searchsorted(EDGES, numpy.float32(DECIDED * (1 + 1e-6)), side="right"))
        return float(self.histogram[..., :first].sum() / self.histogram.sum())

    def percentile(self, share: float, verdict: int | None = None) -> float:
        """The entropy in nats below which that share of the tokens is, of one verdict or of all; NaN if there is no token."""
        return float(self.percentiles(numpy.array([share]), verdict)[0])

    def percentiles(self, shares: numpy.ndarray, verdict: int | None = None) -> numpy.ndarray:
        """`percentile` of each share."""
        below = (self._fine.sum(axis=0) if verdict is None else self._fine[verdict]).cumsum()
        total = int(below[-1])
        if not total:
            return numpy.full(len(shares), numpy.nan)
        places = shares * (total - 1)
        first = places.astype(numpy.int64)
        ends = numpy.searchsorted(below, [first, numpy.minimum(first + 1, total - 1)], side="right")
        low, high = ((ends << _DROPPED_BITS) + (1 << (_DROPPED_BITS - 1))).astype(numpy.int32).view(numpy.float32)
        found: numpy.ndarray = low + (places - first) * (high - low)
        return found


def _count(into: numpy.ndarray, places: numpy.ndarray) -> None:
    into += numpy.bincount(places, minlength=into.size).reshape(into.shape)
