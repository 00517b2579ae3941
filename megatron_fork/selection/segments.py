"""The segments that a scope cuts separately: each token's segment, the ranks that cut together, and the place of each cut.

The k-th largest integers of all segments are found together, over all ranks, by radix select with one histogram per segment:
the leading digit of all keys is counted in one table of segments x digits, summed over the ranks, which shows for each segment
which bin holds its k-th largest; the next digit is counted only among the keys of these bins. Time is linear in the keys for
any number of segments, and every rank takes part in the same collectives, whatever keys it has.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_fork.distributed import collectives
from megatron_fork.distributed.collectives import Group
from megatron_fork.errors import SelectionError
from megatron_fork.selection.choices import SCOPES
from megatron_fork.selection.config import SelectionConfig
from megatron_fork.selection.kth import block_size

_MOST_OVER_RANKS = 1 << 20  # a table of counts for each is sent between ranks
_TABLE_BITS = 20  # the counts of a round fill at most 8 MiB, unless there are more segments than half of that many
_SMALL_TABLE_BITS = 17  # for a chunk: its table is no larger than its keys
_DIGIT_BITS = 11


@dataclass(frozen=True)
class Segments:
    """`number` segments of this rank's tokens, each cut over all ranks of `group`."""

    of_token: Tensor | None  # int32 [tokens]; None if there is one segment
    number: int
    group: Group

    def each(self, value: Tensor) -> Tensor:
        """`[segments] -> [tokens]`, or `[1]` if there is one segment, to be broadcast."""
        return value if self.of_token is None else value.index_select(0, self.of_token)

    def count(self, flags: Tensor) -> Tensor:
        """`[segments]` int64: the flagged tokens of each, over all ranks."""
        if self.of_token is None:
            counts = flags.count_nonzero()[None]
        else:
            flagged = self.of_token.index_select(0, flags.nonzero()[:, 0])
            counts = torch.bincount(flagged, minlength=self.number)
        return collectives.all_reduce_sum(counts, self.group)

    def among(self, places: Tensor) -> Segments:
        """The same segments with only the tokens at `places`."""
        of_token = None if self.of_token is None else self.of_token.index_select(0, places)
        return Segments(of_token, self.number, self.group)

    def kth_largest(self, keys: Tensor, k: Tensor) -> Tensor:
        """`[segments]`: the k-th largest integer key of each, over all ranks."""
        return _kth_largest_of_segments(keys, self.of_token, k, self.group)


def segments_of(
    shape: torch.Size, segments: Tensor | None, candidate: Tensor, config: SelectionConfig, group: Group
) -> Segments:
    """The segments of `config.scope`; `candidate` is flat, `segments` has the tokens' `shape` or is None."""
    assert config.scope is not None  # the preset sets it
    scope = SCOPES[config.scope]
    wide = scope.over_ranks
    of_token = torch.zeros(0, dtype=torch.int64, device=candidate.device)
    if scope.segment == "sequence" and segments is None:
        length = shape[-1] if shape else 1
        of_token = torch.arange(math.prod(shape[:-1]), device=candidate.device).repeat_interleave(length)
    elif scope.segment is not None and segments is not None:
        of_token = segments.reshape(-1).to(torch.int64)
    if of_token.numel():
        of_token = of_token.where(candidate, 0)  # values at other tokens are arbitrary
    last_here, last_anywhere = _last(of_token, wide, group)
    last = last_anywhere if wide else last_here
    if last > candidate.numel() and not wide:
        # Sequences are numbered over the whole mini-batch: a table of all may be far larger than this rank needs.
        present, of_token = of_token.unique(return_inverse=True)
        last = len(present) - 1
    return Segments(of_token.to(torch.int32) if last > 0 else None, last + 1, group if wide else None)


def _last(of_token: Tensor, wide: bool, group: Group) -> tuple[int, int]:
    """The last segment here and over all ranks; every rank raises if the numbers of any rank cannot be used."""
    first_and_last = torch.tensor([0, 0], device=of_token.device)
    if of_token.numel():
        first_and_last = torch.stack([-of_token.min(), of_token.max()])
    last_here = int(first_and_last[1])
    # In every scope, so that ranks whose scopes differ do not wait for each other.
    below_zero, last_anywhere = collectives.all_reduce_max(first_and_last, group).tolist()
    if below_zero > 0:
        raise SelectionError(f"segment {-below_zero} is negative", hint="number micro-batches or sequences from 0")
    if wide and last_anywhere >= _MOST_OVER_RANKS:
        raise SelectionError(
            f"segment {last_anywhere} is more than the {_MOST_OVER_RANKS} that ranks can cut together",
            hint="number the micro-batches from 0 without gaps",
        )
    return last_here, last_anywhere


def _kth_largest_of_segments(keys: Tensor, segment: Tensor | None, k: Tensor, group: Group) -> Tensor:
    """`[segments]`, of the keys' dtype: the k-th largest key of each segment over all ranks of `group`.

    Args:
        keys: int32 or int64 `[n]`, any value.
        segment: int32 `[n]`, the segment of each key; None if there is one segment.
        k: int64 `[segments]`, the same on all ranks: from 1 to the segment's global count. If it is 0, the result has no
            meaning.
        group: the ranks; None for this process alone.

    """
    block = block_size(keys.device)
    if segment is None or collectives.size(group) > 1 or len(keys) <= block or (segment[1:] < segment[:-1]).any():
        return _radix_select(keys, segment, k, group, _TABLE_BITS)
    # As many consecutive segments as fit in a cache: their tables are small, and few rounds are enough.
    ends = torch.bincount(segment, minlength=len(k)).cumsum(0).tolist()
    found, first, start = [], 0, 0
    while first < len(k):
        last = max(first + 1, bisect_right(ends, start + block))
        end = ends[last - 1]
        found.append(_radix_select(keys[start:end], segment[start:end] - first, k[first:last], None, _SMALL_TABLE_BITS))
        first, start = last, end
    return torch.cat(found)


def _radix_select(keys: Tensor, segment: Tensor | None, k: Tensor, group: Group, table_bits: int) -> Tensor:
    width = torch.iinfo(keys.dtype).bits
    digit_bits = max(1, min(_DIGIT_BITS, table_bits - (len(k) - 1).bit_length()))
    remaining, found = k, torch.zeros_like(k)
    for low in reversed(range(0, width, digit_bits)):
        bits = min(digit_bits, width - low)
        bins = 1 << bits
        # The top digit has the sign, and is counted from its smallest value on.
        smallest = -(bins >> 1) if low + bits == width else 0
        digit = (keys >> low).sub_(smallest).bitwise_and_(bins - 1)
        place = digit if segment is None else segment * bins + digit
        counts = collectives.all_reduce_sum(torch.bincount(place, minlength=len(k) * bins), group).view(-1, bins)
        from_top = counts.flip(1).cumsum(1)
        higher_bins = (from_top < remaining[:, None]).sum(1, keepdim=True)
        above = from_top.gather(1, (higher_bins - 1).clamp_(min=0)).where(higher_bins > 0, 0)
        remaining = remaining - above[:, 0]
        chosen = bins - 1 - higher_bins[:, 0]
        found = (found << bits) + chosen + smallest
        kept = (digit == (chosen if segment is None else chosen.index_select(0, segment))).nonzero()[:, 0]
        keys, segment = keys.index_select(0, kept), None if segment is None else segment.index_select(0, kept)
    return found.to(keys.dtype)
