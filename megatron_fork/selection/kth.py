"""The exact k-th largest value over all ranks, without gathering the values.

Radix select: floats become integers of the same order, and a histogram of their leading digit, summed over the ranks, says
in which bin the k-th largest lies. The next digit is counted within that bin alone, and after three histograms of 2,048 bins
all 32 bits are known. On the wire: 3 x 16 KiB, whatever the number of values; in memory: one sweep over the values, then over
the survivors of a bin. Ranks may hold any number of values, none included.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_fork.distributed import collectives
from megatron_fork.distributed.collectives import Group
from megatron_fork.errors import SelectionError

_DIGIT_BITS = 11
FLOAT_BITS = 32


def kth_largest(values: Tensor, k: int, *, group: Group = None) -> float:
    """The k-th largest of all ranks' `values` (k = 1: the maximum), exactly one of them.

    Args:
        values: any shape, float; compared as float32. NaN is an error on every rank.
        k: from 1 to the global count.
        group: the ranks; None for this process alone.

    """
    key, _ = kth_largest_key(float_keys(values, group), k, bits=FLOAT_BITS, group=group)
    return _float_of(key)


def float_keys(values: Tensor, group: Group) -> Tensor:
    """`[values]` int64 in [0, 2^32) that order as the floats do; -0.0 and 0.0 are one value."""
    flat = values.detach().reshape(-1).to(torch.float32) + 0.0
    _refuse_nan(flat, group)
    bits = flat.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    return torch.where(bits >= 1 << 31, 0xFFFFFFFF - bits, bits + (1 << 31))


def _float_of(key: int) -> float:
    bits = key - (1 << 31) if key >= 1 << 31 else 0xFFFFFFFF - key
    signed = bits - (1 << 32) if bits >= 1 << 31 else bits
    return torch.tensor(signed, dtype=torch.int32).view(torch.float32).item()


def _refuse_nan(flat: Tensor, group: Group) -> None:
    """Every rank learns of a NaN anywhere, so that all raise and none is left waiting."""
    position = flat.isnan().nonzero()
    found = torch.full((collectives.size(group),), -1, dtype=torch.int64, device=flat.device)
    if position.numel():
        found[collectives.rank(group)] = position[0, 0]
    collectives.all_reduce_max(found, group)
    if (found >= 0).any():
        rank = int((found >= 0).nonzero()[0, 0])
        raise SelectionError(
            f"value {int(found[rank])} of rank {rank} is NaN",
            hint="look for a diverged policy: logits that are not finite",
        )


def kth_largest_key(keys: Tensor, k: int, *, bits: int, group: Group) -> tuple[int, int]:
    """The k-th largest of all ranks' non-negative integers below `2^bits`, and how many of its value the top k hold."""
    count = collectives.all_reduce_sum(torch.tensor(keys.numel(), device=keys.device), group).item()
    if not 1 <= k <= count:
        raise SelectionError(f"k={k} is not between 1 and the {count} values of all ranks", hint="ask for fewer values")
    remaining, prefix = k, 0
    for low in reversed(range(0, bits, _DIGIT_BITS)):
        width = min(_DIGIT_BITS, bits - low)
        digit = (keys >> low) & ((1 << width) - 1)
        histogram = collectives.all_reduce_sum(torch.bincount(digit, minlength=1 << width), group)
        from_top = histogram.flip(0).cumsum(0)
        place = int(torch.searchsorted(from_top, remaining))
        chosen = (1 << width) - 1 - place
        if place:
            remaining -= int(from_top[place - 1])
        prefix |= chosen << low
        keys = keys[digit == chosen]
    return prefix, remaining
