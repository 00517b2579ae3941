"""The k-th largest integer of every segment at once, over all ranks: radix select with a histogram a segment.

The leading digit of all keys is counted in one table of segments x digits, summed over the ranks, which says for each segment
in which bin its k-th largest lies; the next digit is counted among the keys of these bins alone. Time is linear in the keys
whatever the number of segments, and every rank takes part in the same collectives, whatever it holds of them.
"""

from __future__ import annotations

from bisect import bisect_right

import torch
from torch import Tensor

from megatron_fork.distributed import collectives
from megatron_fork.distributed.collectives import Group
from megatron_fork.selection.keys import block_size

_TABLE_BITS = 20  # the counts of a round fill at most 8 MiB, unless there are more segments than half of that many
_SMALL_TABLE_BITS = 17  # of a chunk: no more to sweep than its keys
_DIGIT_BITS = 11


def kth_largest_of_segments(keys: Tensor, segment: Tensor | None, k: Tensor, group: Group) -> Tensor:
    """`[segments]`, of the keys' dtype: the k-th largest key of each segment over all ranks of `group`.

    Args:
        keys: int32 or int64 `[n]`, any value.
        segment: int32 `[n]`, the segment of each key; None where there is one segment.
        k: int64 `[segments]`, the same on all ranks: from 1 to the segment's global count. Where it is 0, the result
            says nothing.
        group: the ranks; None for this process alone.

    """
    block = block_size(keys.device)
    if segment is None or collectives.size(group) > 1 or len(keys) <= block or (segment[1:] < segment[:-1]).any():
        return _radix_select(keys, segment, k, group, _TABLE_BITS)
    # Neighbouring segments, as many as a cache holds: their tables are small, and so can be their number of rounds.
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
        # The top digit carries the sign, and is counted from its smallest value on.
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
