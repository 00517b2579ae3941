"""NAT's random prefixes (arXiv 2603.06619): a response is trained up to a random place, and weights 1 / p keep it unbiased.

What follows the place is not read by the model in the update. p is the chance that a token lies before the place, so that
over the draw the expected gradient of every loss that is a sum over tokens is that of the whole responses.
"""

from __future__ import annotations

import torch

from megatron_fork.selection.scores import random_bits
from megatron_fork.selection.weights.chosen_tokens import ChosenTokens, Weighed

# Differs from the default of `selection.seed`, since the control arm draws with the same bits.
_SEED = 260306619


def nat(tokens: ChosenTokens) -> Weighed:
    """1 / p for the first L tokens of a response of T, 0 for the rest; L is drawn from ceil(shortest T), ..., T, all alike.

    The draw depends on the seed, the update and the response alone. With `shortest=1` every weight is 1.
    """
    place, sequence = tokens.needed("place"), tokens.needed("sequence")
    length = torch.bincount(sequence)[sequence]
    shortest = (length.double() * tokens.config.nat.shortest - 1e-9).ceil().long().clamp(min=1)
    lengths = length - shortest + 1
    bits = random_bits(tokens.needed("response"), tokens.config.seed + _SEED, tokens.columns.step).long()
    prefix = shortest + (bits * lengths >> 31)
    # The lengths above `place` are T - place of all, once the place is beyond the shortest.
    chance = (length - place.clamp(min=shortest - 1)).double() / lengths
    read = place < prefix
    there, tokens_read = tokens.sums(torch.tensor(len(read), device=read.device), read.sum())
    return Weighed(torch.where(read, 1.0 / chance, 0.0), {"nat_read": tokens_read / max(1.0, there)})
