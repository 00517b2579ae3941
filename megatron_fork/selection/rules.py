"""The named rules: from the tokens' scores and segments to flags, with one cut in every segment.

Tokens that are no candidates are given the lowest score there is, so that the k-th largest of all tokens is that of the
candidates, and nothing has to be picked out and put back.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from megatron_fork.selection.config import Config
from megatron_fork.selection.keys import floats_of_keys, ordered_keys
from megatron_fork.selection.kth import global_count, kth_of_numbers
from megatron_fork.selection.scramble import scrambled
from megatron_fork.selection.segments import Segments


def cut_by_score(score: Tensor, k: Tensor, count: Tensor, segments: Segments, config: Config) -> Tensor:
    """`[segments]` float64: the score at the cut of each, NaN where there is no candidate.

    `score` is float32 `[tokens]`, minus infinity at those that are no candidates; `k` and `count` are of the candidates.
    """
    if config.rule != "quantile":
        return _kth_largest(score, k, segments)
    # Interpolated as `torch.quantile` does, which stops at 2^24 values.
    place = (1.0 - config.ratio) * (count - 1).clamp(min=0).double()
    below = place.floor()
    rank = count - below.long()
    lower = _kth_largest(score, rank, segments)
    upper = _kth_largest(score, (rank - 1).clamp(min=1).minimum(count), segments)
    cut = lower + (upper - lower) * (place - below)
    return torch.where(cut.isnan(), lower, cut)  # inf - inf and 0 x inf are no interpolation


def mark_by_score(
    score: Tensor, cut: Tensor, k: Tensor, candidate: Tensor, ids: Tensor | None, segments: Segments, tolerance: float
) -> Tensor:
    """Flags `[tokens]`: candidates at or above the cut of their segment, or exactly k of them where `ids` break the ties."""
    # Compared in the scores' own precision.
    high_enough = (score >= segments.each((cut - tolerance).to(torch.float32))).logical_and_(candidate)
    if ids is None:
        return high_enough
    above = (score > segments.each((cut + tolerance).to(torch.float32))).logical_and_(candidate)
    return _exactly(k, above, high_enough.logical_xor_(above), ids, segments)


def mark_at_random(k: Tensor, candidate: Tensor, ids: Tensor, segments: Segments, config: Config, step: int) -> Tensor:
    """Flags `[tokens]` of exactly k candidates a segment: those with the highest pseudo-random keys."""
    keys = scrambled(ids, config.seed, step).masked_fill_(~candidate, -1)
    cut = segments.each(segments.kth_largest(keys, k))
    return _exactly(k, keys > cut, keys == cut, ids, segments)


def shares(ratio: float, count: Tensor) -> Tensor:
    """`ceil(ratio n)` of each count n, at least 1 of any: exactly, for the ratio that was written (0.7 of 10 are 7)."""
    sizes, place = count.unique(return_inverse=True)
    # In floats 0.7 x 10 may come out above 7, and one token more would be taken.
    exact = Fraction(ratio).limit_denominator(10**9)
    k = [max(1, -(-exact.numerator * size // exact.denominator)) if size else 0 for size in sizes.tolist()]
    return torch.tensor(k, dtype=torch.int64, device=count.device)[place]


def _exactly(k: Tensor, above: Tensor, tied: Tensor, ids: Tensor, segments: Segments) -> Tensor:
    """Flags of k tokens a segment: those above the cut and, of the tied, as many as are missing, lowest ids first."""
    missing = k - segments.count(above)
    if not (segments.count(tied) > missing).any():
        return above | tied
    places = tied.nonzero()[:, 0]
    among_tied = segments.among(places)
    backwards = ~ids.index_select(0, places)  # the complement turns the order of all integers over
    lowest = backwards >= among_tied.each(among_tied.kth_largest(backwards, missing))
    return above.index_fill(0, places[lowest], True)


def _kth_largest(score: Tensor, k: Tensor, segments: Segments) -> Tensor:
    """`[segments]` float64, NaN where k is 0."""
    if segments.of_token is None:
        rank = int(k)
        count = global_count(score, segments.group)
        value = kth_of_numbers(score, rank, count, segments.group) if rank else torch.nan
        return torch.tensor([value], dtype=torch.float64, device=score.device)
    keys = segments.kth_largest(ordered_keys(score), k)
    return torch.where(k > 0, floats_of_keys(keys).double(), torch.nan)
