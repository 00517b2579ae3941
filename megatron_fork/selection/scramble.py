"""The random choice: pseudo-random keys of token ids, the same on every device and for every layout."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 1 << 20  # tokens mixed at a time, for the sake of memory


def scrambled(ids: Tensor, seed: int, step: int) -> Tensor:
    """`[n]` int32, not negative: 31 pseudo-random bits for each int64 id."""
    # Python integers have no end, tensors wrap around at 64 bits: the offset has to fit before it is added.
    offset = (seed * 1_000_003 + step) * 0x9E3779B1 & 0x7FFFFFFFFFFFFFFF
    return torch.cat([_mixed(block + offset).to(torch.int32) for block in ids.split(_BLOCK)])


def _mixed(numbers: Tensor) -> Tensor:
    """Multiply and shift, in place, until every bit of a number has a say in every bit of the result."""
    for factor in (0x45D9F3B3335B369, 0x3C6EF372FE94F82B):
        numbers.bitwise_xor_(numbers >> 29).mul_(factor)
    return numbers.bitwise_xor_(numbers >> 32).bitwise_and_(0x7FFFFFFF)
