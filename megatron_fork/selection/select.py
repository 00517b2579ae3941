"""Which tokens carry gradient: I_t = 1[H_t >= tau], with tau over the whole mini-batch (arXiv 2506.01939, Eq. 6).

Tokens that are no candidates are given the lowest score there is, so that the k-th largest of all tokens is that of the
candidates, and nothing has to be picked out and put back. A random choice is one by pseudo-random keys of the tokens' ids: the
same on every device and for every layout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from megatron_fork.distributed import collectives
from megatron_fork.distributed.collectives import Group
from megatron_fork.errors import SelectionError
from megatron_fork.selection.config import SelectionConfig
from megatron_fork.selection.kth import floats_of_keys, global_count, kth_of_numbers, ordered_keys, refuse_nan
from megatron_fork.selection.segments import Segments, segments_of

_BLOCK = 1 << 20  # tokens mixed at a time, for the sake of memory


@dataclass(frozen=True)
class Selection:
    """The chosen tokens of this rank, and the global counts.

    `threshold` is the entropy at the cut, in nats: the mean over segments, weighted by their candidates, where a scope
    makes several cuts; NaN where entropy decides nothing (`all`, `random`) or there is no candidate.
    """

    mask: Tensor  # bool, the shape of the entropies
    threshold: float
    selected: int
    candidates: int


def select_tokens(
    entropy: Tensor,
    response_mask: Tensor,
    config: SelectionConfig,
    *,
    group: Group = None,
    segments: Tensor | None = None,
    token_ids: Tensor | None = None,
    step: int = 0,
    tie_tolerance: float = 0.0,
) -> Selection:
    """Mark the tokens that carry gradient.

    Args:
        entropy: float, any shape, nats; values outside `response_mask` are never looked at.
        response_mask: bool, same shape: the candidates. Padding, prompts and filtered responses are False.
        config: the named choices.
        group: ranks that share the mini-batch (data parallel), on whose device the tensors are. All of them call this.
        segments: int64, same shape: the micro-batch or sequence of each token, numbered from 0, for the scopes that cut
            in each. By default one micro-batch, and one sequence a row of the last dimension.
        token_ids: int64, same shape: unique ids that do not depend on the layout, to break ties and seed the random
            choice. By default the place in the concatenation of all ranks' tokens.
        step: number of the update, mixed into the random choice.
        tie_tolerance: entropies this close to the cut, in nats, count as equal to it.

    No candidate on a rank, or on all, is legal: nothing is selected there.

    """
    for name, other in (("response_mask", response_mask), ("segments", segments), ("token_ids", token_ids)):
        _check_column(name, other, entropy)
    if not 0.0 <= tie_tolerance < math.inf:
        raise SelectionError(f"tie_tolerance={tie_tolerance} is not a distance", hint="0 counts equal entropies alone")
    candidate = response_mask.reshape(-1)
    if config.tokens == "all":
        chosen, threshold = candidate.clone(), math.nan
    else:
        parts = segments_of(entropy.shape, segments, candidate, config, group)
        count = parts.count(candidate)
        k = _shares(config.ratio, count)
        if config.tokens == "random":
            chosen = _mark_at_random(k, candidate, _ids(token_ids, candidate, group), parts, config, step)
            threshold = math.nan
        else:
            sign = -1.0 if config.tokens == "bottom" else 1.0
            score = entropy.detach().reshape(-1).to(torch.float32).mul(sign).where(candidate, -math.inf)
            refuse_nan(score, group)
            ids = _ids(token_ids, candidate, group) if config.rule == "exact_k" else None
            cut = _cut_by_score(score, k, count, parts, config)
            chosen = _mark_by_score(score, cut, k, candidate, ids, parts, tie_tolerance)
            threshold = sign * _mean(cut, count, parts, group) + 0.0  # -0.0 becomes 0.0
    counts = torch.stack([chosen.count_nonzero(), candidate.count_nonzero()])
    selected, candidates = collectives.all_reduce_sum(counts, group).tolist()
    return Selection(chosen.reshape(entropy.shape), threshold, selected, candidates)


def _mean(cut: Tensor, count: Tensor, parts: Segments, group: Group) -> float:
    """The cuts' mean, weighted by candidates; of cuts that each rank makes for itself, over all ranks of `group`."""
    cut, count = cut[count > 0], count[count > 0]
    if len(cut) == 1 and (parts.group is not None or collectives.size(group) == 1):
        return float(cut)  # to the last bit, so that comparing entropies with it repeats the choice
    sums = torch.stack([(cut * count).sum(), count.sum().double()])
    if parts.group is None:
        collectives.all_reduce_sum(sums, group)
    return float(sums[0] / sums[1])


def _ids(token_ids: Tensor | None, candidate: Tensor, group: Group) -> Tensor:
    """int64 `[tokens]`: those given, or the places in the concatenation of all ranks' tokens."""
    if token_ids is not None:
        return token_ids.reshape(-1).to(torch.int64)
    tokens = collectives.all_gather(torch.tensor([candidate.numel()], device=candidate.device), group)[:, 0]
    first = int(tokens[: collectives.rank(group)].sum())
    return torch.arange(first, first + candidate.numel(), device=candidate.device)


def _check_column(name: str, column: Tensor | None, entropy: Tensor) -> None:
    if column is None:
        return
    if column.shape != entropy.shape:
        raise SelectionError(
            f"entropy has shape {list(entropy.shape)}, {name} {list(column.shape)}", hint="one entry a token"
        )
    is_flag = column.dtype == torch.bool
    if is_flag != (name == "response_mask") or column.is_floating_point() or column.is_complex():
        wanted = "bool" if name == "response_mask" else "an integer type"
        raise SelectionError(f"{name} is {column.dtype}, not {wanted}", hint="convert it before selecting")


def _cut_by_score(score: Tensor, k: Tensor, count: Tensor, segments: Segments, config: SelectionConfig) -> Tensor:
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


def _mark_by_score(
    score: Tensor, cut: Tensor, k: Tensor, candidate: Tensor, ids: Tensor | None, segments: Segments, tolerance: float
) -> Tensor:
    """Flags `[tokens]`: candidates at or above the cut of their segment, or exactly k of them where `ids` break the ties."""
    # Compared in the scores' own precision.
    high_enough = (score >= segments.each((cut - tolerance).to(torch.float32))).logical_and_(candidate)
    if ids is None:
        return high_enough
    above = (score > segments.each((cut + tolerance).to(torch.float32))).logical_and_(candidate)
    return _exactly(k, above, high_enough.logical_xor_(above), ids, segments)


def _mark_at_random(
    k: Tensor, candidate: Tensor, ids: Tensor, segments: Segments, config: SelectionConfig, step: int
) -> Tensor:
    """Flags `[tokens]` of exactly k candidates a segment: those with the highest pseudo-random keys."""
    keys = _scrambled(ids, config.seed, step).masked_fill_(~candidate, -1)
    cut = segments.each(segments.kth_largest(keys, k))
    return _exactly(k, keys > cut, keys == cut, ids, segments)


def _shares(ratio: float, count: Tensor) -> Tensor:
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


def _scrambled(ids: Tensor, seed: int, step: int) -> Tensor:
    """`[n]` int32, not negative: 31 pseudo-random bits for each int64 id."""
    # Python integers have no end, tensors wrap around at 64 bits: the offset has to fit before it is added.
    offset = (seed * 1_000_003 + step) * 0x9E3779B1 & 0x7FFFFFFFFFFFFFFF
    return torch.cat([_mixed(block + offset).to(torch.int32) for block in ids.split(_BLOCK)])


def _mixed(numbers: Tensor) -> Tensor:
    """Multiply and shift, in place, until every bit of a number has a say in every bit of the result."""
    for factor in (0x45D9F3B3335B369, 0x3C6EF372FE94F82B):
        numbers.bitwise_xor_(numbers >> 29).mul_(factor)
    return numbers.bitwise_xor_(numbers >> 32).bitwise_and_(0x7FFFFFFF)
