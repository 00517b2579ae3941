"""The exact k-th largest value over all ranks, without gathering the values.

Floats become integers of the same order. A histogram of an interval of these, summed over the ranks, shows which bin holds the
k-th largest; that bin is the next interval, until one value is left. From the whole range this takes three rounds.

With many values a sample guesses the first interval, so narrow that its histogram nearly gives the answer and few values are
left to look at again. If the guess misses, the counts beside it show that, and the search starts from the whole range: sampling
decides the time, never the result.

On the wire: histograms of at most 4,099 counts for any number of values. In memory: temporaries of one block, and one histogram
per block. Ranks may hold any number of values, including none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_fork.distributed import collectives
from megatron_fork.distributed.collectives import Group
from megatron_fork.errors import SelectionError

_DIGIT_BITS = 12
_LOWEST, _HIGHEST = ~0x7F800000, 0x7F800000  # the keys of the infinities
_SAMPLED_FROM = 1 << 19
_SAMPLE_STRIDE = 127  # odd, so that it is not in step with rows of a round length


def kth_largest(values: Tensor, k: int, *, group: Group = None) -> float:
    """The k-th largest of all ranks' `values` (k = 1: the maximum), which is exactly one of them.

    Args:
        values: any shape, float; compared as float32. NaN is an error on every rank.
        k: from 1 to the global count.
        group: the ranks; None for this process alone.

    """
    flat = values.detach().reshape(-1)
    refuse_nan(flat, group)
    count = global_count(flat, group)
    if not 1 <= k <= count:
        raise SelectionError(f"k={k} is not between 1 and the {count} values of all ranks", hint="ask for fewer values")
    return kth_of_numbers(flat, k, count, group)


def kth_of_numbers(flat: Tensor, k: int, count: int, group: Group) -> float:
    """`kth_largest` of `count` values in all, without checks: none may be NaN, and 1 <= k <= count."""
    return float_of_key(_kth_key(flat, k, count, group))


def global_count(values: Tensor, group: Group) -> int:
    """How many values all ranks hold together."""
    return int(collectives.all_reduce_sum(torch.tensor(values.numel(), device=values.device), group))


@dataclass(frozen=True)
class _Interval:
    """The keys for which `key >> shift` is one of the `bins` numbers from `first` on."""

    first: int
    bins: int
    shift: int

    def split(self, index: int) -> _Interval:
        """Bin `index` as an interval with as many bins as a histogram may have."""
        shift = max(0, self.shift - _DIGIT_BITS)
        parts = self.shift - shift
        return _Interval((self.first + index) << parts, 1 << parts, shift)


_WHOLE = _Interval(-(1 << _DIGIT_BITS - 1), 1 << _DIGIT_BITS, 32 - _DIGIT_BITS)


def _kth_key(flat: Tensor, k: int, count: int, group: Group) -> int:
    """The key of the k-th largest of `count` values over all ranks, none of them NaN; 1 <= k <= count."""
    blocks = list(flat.split(block_size(flat.device)))
    interval, is_guess = (_guess(flat, k, count, group), True) if count >= _SAMPLED_FROM else (_WHOLE, False)
    rank = k  # of what is sought, among the values in the interval
    while True:
        counts = torch.empty(len(blocks), interval.bins + 2, dtype=torch.int64, device=flat.device)
        for row, block in zip(counts, blocks, strict=True):
            # Copied to new memory: a histogram kept where it was made would keep its block's memory from being reused.
            row.copy_(_histogram(block, interval))
        total = collectives.all_reduce_sum(counts.sum(0), group).cpu()
        from_top = total[1:-1].flip(0).cumsum(0)
        if is_guess:
            is_guess, rank = False, k - int(total[-1])
            if not 1 <= rank <= from_top[-1]:
                interval, rank = _WHOLE, k
                continue
        higher_bins = int(torch.searchsorted(from_top, rank))
        chosen = interval.bins - 1 - higher_bins
        if interval.shift == 0:
            return interval.first + chosen
        rank -= int(from_top[higher_bins - 1]) if higher_bins else 0
        interval = interval.split(chosen)
        hits = counts[:, 1 + chosen].tolist()
        # One block is always kept, even an empty one, since every rank takes part in every round.
        blocks = [block for block, hit in zip(blocks, hits, strict=True) if hit] or blocks[:1]


def _histogram(block: Tensor, interval: _Interval) -> Tensor:
    """`[1 + bins + 1]` counts: of the values below the interval, in each of its bins, and above it."""
    below = interval.first - 1
    # The bits of non-negative floats are already in order; those of negative floats are negative integers, which are below.
    keys = block.to(torch.float32).view(torch.int32) if below >= 0 else ordered_keys(block)
    bins = (keys >> interval.shift).clamp_(below, interval.first + interval.bins).sub_(below)
    return torch.bincount(bins, minlength=interval.bins + 2)


def _guess(flat: Tensor, k: int, count: int, group: Group) -> _Interval:
    """An interval that nearly always holds the k-th largest: four standard deviations around its place in a sample."""
    sample = flat[::_SAMPLE_STRIDE].contiguous()
    sampled = global_count(sample, group)
    share = k / count
    place, spread = share * sampled, 4.0 * math.sqrt(sampled * share * (1.0 - share)) + 4.0
    lower, upper = math.ceil(place + spread), math.floor(place - spread)
    low = _kth_key(sample, lower, sampled, group) if lower <= sampled else _LOWEST
    high = _kth_key(sample, upper, sampled, group) if upper >= 1 else _HIGHEST
    shift = max(0, (high - low).bit_length() - _DIGIT_BITS)
    return _Interval(low >> shift, (high >> shift) - (low >> shift) + 1, shift)


# Floats as integers of the same order.


def block_size(device: torch.device) -> int:
    """How many values to handle at a time: as many as fit in a CPU's cache, or enough to hide kernel launches on a GPU."""
    return 1 << 16 if device.type == "cpu" else 1 << 24


def ordered_keys(values: Tensor) -> Tensor:
    """int32 keys in new memory with the order of the values in float32; -0.0 is directly below 0.0."""
    bits = values.to(torch.float32).view(torch.int32)
    # A negative float's magnitude grows with its low 31 bits, so these are inverted; one new tensor, the rest in place.
    return (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits)


def float_of_key(key: int) -> float:
    """The value of a key; 0.0 also for the key of -0.0."""
    bits = key if key >= 0 else key ^ 0x7FFFFFFF
    return torch.tensor(bits, dtype=torch.int32).view(torch.float32).item() + 0.0


def floats_of_keys(keys: Tensor) -> Tensor:
    """The float32 value of each int32 key: `ordered_keys` is its own inverse."""
    return ordered_keys(keys.view(torch.float32)).view(torch.float32)


def refuse_nan(values: Tensor, group: Group, whose: str = "") -> None:
    """Raise `SelectionError` on every rank if any rank has a NaN, so that none is left waiting."""
    found = torch.zeros(collectives.size(group), dtype=torch.int64, device=values.device)
    # The maximum of values with a NaN among them is NaN: one sweep without a temporary, where `isnan` would make flags.
    if values.numel() and values.max().isnan():
        found[collectives.rank(group)] = 1 + values.isnan().nonzero()[0, 0]
    collectives.all_reduce_max(found, group)
    if found.any():
        rank = int(found.nonzero()[0, 0])
        raise SelectionError(
            f"{whose}value {int(found[rank]) - 1} of rank {rank} is NaN",
            hint="the policy may have diverged: check for logits that are not finite",
        )
