"""Sequences into micro-batches: one packed row each, under a token budget, with no padding beyond alignment.

The mini-batch is first dealt over the data-parallel ranks, then each rank cuts its share into micro-batches. Which sequence
lands where changes no result: the loss is divided by global counts, and every per-token value carries its place with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from megatron_fork.experience import Batch, Demonstration


@dataclass(frozen=True)
class MicroBatch:
    """One pipeline item: sequences end to end in a row of `tokens` tokens."""

    token_1t: Tensor  # [1, tokens] int64
    position_1t: Tensor  # [1, tokens] int64, from 0 in every sequence
    target_1t: Tensor  # [1, tokens] int64, the next token of the sequence
    response_1t: Tensor  # [1, tokens] bool, whether the target is a response token
    cumulative_lengths: Tensor  # [sequences + 1] int32
    longest: int
    place_r: Tensor  # [response tokens] int64, where each response target stands in the batch's columns

    @property
    def tokens(self) -> int:
        return self.token_1t.shape[1]

    def rows(self, selected_t: Tensor) -> Tensor:
        """`[1, tokens]` bool: the rows of this micro-batch whose response token is marked in a column of the batch."""
        rows_1t = torch.zeros_like(self.response_1t)
        rows_1t[self.response_1t] = selected_t[self.place_r]
        return rows_1t

    def to(self, device: torch.device) -> MicroBatch:
        if device.type == "cpu":
            return self
        return replace(
            self,
            token_1t=self.token_1t.to(device),
            position_1t=self.position_1t.to(device),
            target_1t=self.target_1t.to(device),
            response_1t=self.response_1t.to(device),
            cumulative_lengths=self.cumulative_lengths.to(device),
        )


def deal(batch: Batch, rank: int, ranks: int) -> Batch:
    """This data-parallel rank's share: longest sequences first, dealt back and forth so that token counts balance."""
    order = _longest_first(batch.sequences)
    period = 2 * ranks
    mine = [index for place, index in enumerate(order) if min(place % period, period - 1 - place % period) == rank]
    return batch.take(mine)


def pack(batch: Batch, *, token_budget: int, alignment: int = 1) -> list[MicroBatch]:
    """Micro-batches of at most `token_budget` tokens; a longer sequence gets one of its own.

    There is always one, if need be with no sequence at all, so that every rank takes part in every collective.
    """
    order = _longest_first(batch.sequences)
    starts = [0, *accumulate(batch.response_lengths)]
    bins: list[list[int]] = [[]]
    filled = 0
    for index in order:
        length = batch.sequences[index].length
        if bins[-1] and filled + length > token_budget:
            bins.append([])
            filled = 0
        bins[-1].append(index)
        filled += length
    return [_row(batch.sequences, indices, starts, alignment) for indices in bins]


def _longest_first(sequences: Sequence[Demonstration]) -> list[int]:
    return sorted(range(len(sequences)), key=lambda index: -sequences[index].length)


def _row(sequences: Sequence[Demonstration], indices: list[int], starts: list[int], alignment: int) -> MicroBatch:
    tokens: list[int] = []
    targets: list[int] = []
    response: list[bool] = []
    lengths: list[int] = []
    places: list[Tensor] = []
    for index in indices:
        sequence = sequences[index]
        whole = [*sequence.prompt.tokens, *sequence.response]
        tokens += whole[:-1]
        targets += whole[1:]
        prompt_targets = len(sequence.prompt.tokens) - 1
        response += [False] * prompt_targets + [True] * len(sequence.response)
        lengths.append(sequence.length)
        places.append(torch.arange(starts[index], starts[index + 1]))
    # Alignment is one more sequence, of token 0, that nothing attends to and whose targets are no response.
    padding = -len(tokens) % alignment if tokens else alignment
    if padding:
        tokens += [0] * padding
        targets += [0] * padding
        response += [False] * padding
        lengths.append(padding)
    return MicroBatch(
        token_1t=torch.tensor([tokens]),
        position_1t=torch.cat([torch.arange(length) for length in lengths])[None],
        target_1t=torch.tensor([targets]),
        response_1t=torch.tensor([response]),
        cumulative_lengths=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        longest=max(lengths),
        place_r=torch.cat(places) if places else torch.zeros(0, dtype=torch.long),
    )
