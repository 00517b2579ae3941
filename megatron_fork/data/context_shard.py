"""Which tokens of a packed row a context-parallel rank holds.

Causal attention gives late tokens more work than early ones. So each sequence is cut in two chunks a rank, and a rank
holds one from the front and its mirror image from the back ("zig-zag"): all ranks work alike.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from megatron_fork.errors import DataError


def zig_zag(cumulative_lengths: Tensor, rank: int, ranks: int) -> Tensor:
    """`[tokens / ranks]` int64: the places in the row that context rank `rank` holds, in its order.

    Of each sequence, cut in `2 * ranks` chunks, chunk `rank` and then chunk `2 * ranks - 1 - rank`; sequences end to end.
    Raises `DataError` where a sequence of `cumulative_lengths` (`[sequences + 1]`) cannot be cut so.
    """
    chunks = 2 * ranks
    places = []
    edges: list[int] = cumulative_lengths.tolist()
    for start, end in pairwise(edges):
        if (end - start) % chunks:
            raise DataError(
                f"a packed sequence of {end - start} tokens has no {chunks} equal chunks for context={ranks}",
                hint="pack with RowShape(context=...)",
            )
        piece = (end - start) // chunks
        for chunk in (rank, chunks - 1 - rank):
            places.append(torch.arange(start + chunk * piece, start + (chunk + 1) * piece))
    return torch.cat(places)
