"""What is counted over every traced token: entropies by verdict, selection and position, and the distinct tokens.

Responses come in parts and are not kept. Counts of the histogram are exact. Percentiles come from bins of 0.2 % of their
value, so that any number of tokens takes the same memory.
"""

from __future__ import annotations

import numpy

from megatron_fork.analysis.page.responses import VERDICTS, Part

# In nats: entropies below `LOWEST` are in the first bin, those below `DECIDED` are counted in words.
LOWEST, DECIDED = 1e-4, 1e-2
BINS_PER_DECADE = 8
# Up to 316 nats: the entropy of more words than there are.
EDGES = (LOWEST * 10 ** (numpy.arange(6.5 * BINS_PER_DECADE + 1) / BINS_PER_DECADE)).astype(numpy.float32)
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
        self.position_counts = numpy.zeros((len(VERDICTS), len(POSITIONS)), dtype=numpy.int64)
        self.position_sums = numpy.zeros((len(VERDICTS), len(POSITIONS)))
        self._fine = numpy.zeros((len(VERDICTS), _FINE_BINS), dtype=numpy.int64)
        self.token_counts = numpy.zeros(0, dtype=numpy.int64)
        """[distinct tokens], as are the next two."""
        self.token_sums = numpy.zeros(0)
        self.token_selected = numpy.zeros(0, dtype=numpy.int64)

    def __bool__(self) -> bool:
        return bool(self.histogram.any())

    @property
    def tokens(self) -> int:
        return int(self.histogram.sum())

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
        bins = numpy.minimum(numpy.searchsorted(EDGES, entropy, side="right"), len(EDGES) - 1)
        _count(self.histogram, (verdict * 2 + selected) * len(EDGES) + bins)
        _count(self._fine, verdict * _FINE_BINS + (entropy.view(numpy.int32) >> _DROPPED_BITS))
        place = verdict * len(POSITIONS) + numpy.searchsorted(POSITIONS, position, side="right") - 1
        _count(self.position_counts, place)
        self.position_sums += numpy.bincount(place, entropy, self.position_sums.size).reshape(self.position_sums.shape)
        self._add_tokens(part.tokens[finite], entropy, selected)

    def _add_tokens(self, tokens: numpy.ndarray, entropy: numpy.ndarray, selected: numpy.ndarray) -> None:
        longer = max(len(self.token_counts), int(tokens.max()) + 1)
        for name, weights in (("token_counts", None), ("token_sums", entropy), ("token_selected", selected)):
            added = numpy.bincount(tokens, weights, longer)
            before = vars(self)[name]
            added[: len(before)] += before
            vars(self)[name] = added.astype(before.dtype)

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
