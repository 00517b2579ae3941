"""Balances work: sequences over bins (data-parallel ranks, micro-batches), and a packed row's tokens over context ranks.

Longest processing time first (Graham, 1969): the longest sequence left goes into the bin with the least work. Causal attention
gives late tokens more work than early ones: so each sequence of a row is cut into two chunks per context rank, and a rank holds
one from the front and its mirror image from the back ("zig-zag").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import pairwise

import torch
from torch import Tensor

from megatron_fork.errors import DataError


def work(length: int, quadratic_at: float) -> float:
    """Cost of a sequence of `length` tokens, in the cost of a token without attention.

    At `quadratic_at` tokens attention costs as much as all the rest; with infinity only the number of tokens matters.
    """
    return length * (1.0 + length / quadratic_at)


def spread(
    lengths: Sequence[int], bins: int, *, room: float = math.inf, quadratic_at: float = math.inf
) -> list[list[int]] | None:
    """The places in `lengths` that each bin holds, longest first; None if there are too few `bins`.

    A bin holds at most `room` tokens; a longer sequence gets a bin of its own. The same lengths always spread the same way.
    """
    held: list[list[int]] = [[] for _ in range(bins)]
    filled = [0] * bins
    cheapest = [(0.0, number) for number in range(bins)]
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        length = lengths[place]
        full = []
        while cheapest and held[number := cheapest[0][1]] and filled[number] + length > room:
            full.append(heappop(cheapest))
        if not cheapest:
            return None
        cost, number = heappop(cheapest)
        held[number].append(place)
        filled[number] += length
        for entry in [*full, (cost + work(length, quadratic_at), number)]:
            heappush(cheapest, entry)
    return held


def bins_needed(lengths: Sequence[int], room: int) -> int:
    """The fewest bins of `room` tokens over which `spread` fits the sequences by token count; at least one.

    One more bin never makes the least filled one fuller, so what fits into some number of bins fits into every larger one.
    """
    fewest, enough = max(1, math.ceil(sum(min(length, room) for length in lengths) / room)), max(1, len(lengths))
    while fewest < enough:
        middle = (fewest + enough) // 2
        if spread(lengths, middle, room=room) is None:
            fewest = middle + 1
        else:
            enough = middle
    return enough


def zig_zag(cumulative_lengths: Tensor, rank: int, ranks: int) -> Tensor:
    """`[tokens / ranks]` int64: the places in the row that context rank `rank` holds, in its order.

    Each sequence is cut into `2 * ranks` chunks, of which the rank holds `rank` and then `2 * ranks - 1 - rank`; sequences
    follow each other. Raises `DataError` if a sequence of `cumulative_lengths` (`[sequences + 1]`) cannot be cut so.
    """
    chunks = 2 * ranks
    places = []
    edges: list[int] = cumulative_lengths.tolist()
    for start, end in pairwise(edges):
        if (end - start) % chunks:
            raise DataError(
                f"a packed sequence of {end - start} tokens cannot be cut into {chunks} equal chunks for context={ranks}",
                hint="pack with RowShape(context=...)",
            )
        chunk_length = (end - start) // chunks
        for chunk in (rank, chunks - 1 - rank):
            places.append(torch.arange(start + chunk * chunk_length, start + (chunk + 1) * chunk_length))
    return torch.cat(places)
