"""M2PO's second-moment trust mask (arXiv 2510.01161): the largest log-ratios go until the rest have a small mean square.

The mask is exact over all ranks, and no log-ratio travels: the squares are summed by ranges of an order-preserving view of
float32, and the sums over the ranks tell in which range the mean first exceeds the bound; that range is divided again.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from megatron_fork.distributed import collectives
from megatron_fork.distributed.collectives import Group
from megatron_fork.selection.weights.chosen_tokens import ChosenTokens, Weighed

_DIGITS = ((21, 10), (11, 10), (0, 11))  # (lowest bit, bits) of the 31 of a number that is not negative


def m2po(tokens: ChosenTokens) -> Weighed:
    """0 for the tokens with the largest |log pi - log pi_before|, so that the mean square of the rest is at most `moment`.

    Of equal ones all go or stay: those within `tie_tolerance` of the smallest that goes. Under `over=harmful` only tokens count
    whose update goes on in the direction of their ratio, and all others stay.
    """
    settings = tokens.config.m2po
    log_ratio = (tokens.needed("logprob") - tokens.needed(f"{settings.before}_logprob")).float()
    looked_at = tokens.chosen
    if settings.over == "harmful":
        looked_at = looked_at & (tokens.needed("advantage") * log_ratio > 0.0)
    distance = log_ratio.abs()
    first_out = smallest_beyond(distance[looked_at], settings.moment, tokens.columns.group)
    kept = looked_at & (distance < first_out - tokens.tie_tolerance)
    square = distance.double().square()
    before, count, after, left = tokens.sums(square[looked_at].sum(), looked_at.sum(), square[kept].sum(), kept.sum())
    return Weighed(
        (kept | (tokens.chosen & ~looked_at)).float(),
        {"m2po_moment": before / max(1.0, count), "m2po_moment_kept": after / max(1.0, left)},
    )


def smallest_beyond(distance: Tensor, moment: float, group: Group) -> float:
    """The smallest c of all ranks' values, so that those up to c have a mean square above `moment`; infinity if none is.

    `distance` is float32 `[n]`, not negative. Means over the smallest values only grow with their number, so that there is one
    place where they exceed the bound.
    """
    keys = distance.contiguous().view(torch.int32).long()  # the bits of floats that are not negative are in their order
    square = distance.double().square()
    found, total, count = 0, 0.0, 0.0
    for low, bits in _DIGITS:
        here = keys >> (low + bits) == found >> (low + bits)
        digit = (keys[here] >> low) & ((1 << bits) - 1)
        bins = 1 << bits
        sums = torch.bincount(digit, weights=square[here], minlength=bins).double()
        table = collectives.all_reduce_sum(torch.stack([sums, torch.bincount(digit, minlength=bins).double()]), group)
        upto = table.cumsum(1)
        there = table[1] > 0.0
        beyond = there & (upto[0] + total > moment * (upto[1] + count))
        if low == _DIGITS[0][0] and not beyond.any():
            return math.inf
        # A later round divides a range whose end is beyond, but for a last bit of the sums.
        place = int(beyond.nonzero()[0, 0]) if beyond.any() else int(there.nonzero()[-1, 0])
        total += float(upto[0, place] - table[0, place])
        count += float(upto[1, place] - table[1, place])
        found |= place << low
    return float(torch.tensor(found, dtype=torch.int32).view(torch.float32))
