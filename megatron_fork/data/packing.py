"""Packs sequences into micro-batches of one row each, under a token budget and without padding beyond alignment.

The mini-batch is first divided over the data-parallel ranks, then each rank cuts its share into micro-batches, both times so
that the work balances. The placement of a sequence changes no result: the loss is divided by global counts, and every
per-token value carries its place with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from megatron_fork.data.balance import bins_needed, spread, zig_zag
from megatron_fork.errors import DataError
from megatron_fork.experience import Batch, Demonstration


@dataclass(frozen=True)
class RowShape:
    """What the layout requires of a packed row."""

    alignment: int = 1
    """Each context rank's part of a row is a multiple of this: sequence parallelism splits it over tensor ranks."""
    context: int = 1
    """Context-parallel ranks that share a row. Each holds two chunks of every sequence."""

    @property
    def sequence_multiple(self) -> int:
        return 2 * self.context if self.context > 1 else 1

    @property
    def row_multiple(self) -> int:
        return math.lcm(self.sequence_multiple, self.context * self.alignment)


@dataclass(frozen=True)
class MicroBatch:
    """One pipeline item: a row of `tokens` tokens with sequences in turn, or one context rank's part of such a row."""

    token_1t: Tensor  # [1, tokens] int64
    position_1t: Tensor  # [1, tokens] int64, from 0 in every sequence
    target_1t: Tensor  # [1, tokens] int64, the next token of the sequence
    response_1t: Tensor  # [1, tokens] bool, whether the target is a response token
    cumulative_lengths: Tensor  # [sequences + 1] int32, of the whole row
    lengths: tuple[int, ...]  # the same as numbers, in host memory
    place_r: Tensor  # [response tokens] int64, place of each response target in the batch's columns
    number_1t: Tensor  # [1, tokens] int64, each token's number among all tokens of the batch's sequences; padding: -1

    @property
    def tokens(self) -> int:
        return self.token_1t.shape[1]

    @property
    def longest(self) -> int:
        """Sequence of the whole row."""
        return max(self.lengths)

    def rows(self, selected_t: Tensor) -> Tensor:
        """`[1, tokens]` bool: the rows of this micro-batch whose response token is marked in `selected_t`, a batch column."""
        rows_1t = torch.zeros_like(self.response_1t)
        rows_1t[self.response_1t] = selected_t[self.place_r]
        return rows_1t

    def places(self, rows_1t: Tensor) -> Tensor:
        """Int64: the place in the batch's columns of each response target that is marked in `rows_1t`, in the row's order."""
        return self.place_r[rows_1t[self.response_1t]]

    def on_context_rank(self, rank: int, ranks: int) -> MicroBatch:
        """The part of this whole row that context rank `rank` of `ranks` computes; see `zig_zag` for its order.

        The cumulative lengths stay those of the whole row: Megatron's rotary embedding and the attention divide them.
        """
        if ranks == 1:
            return self
        mine_t = zig_zag(self.cumulative_lengths, rank, ranks)
        place_1t = torch.zeros_like(self.token_1t)
        place_1t[self.response_1t] = self.place_r
        response_1t = self.response_1t[:, mine_t]
        return replace(
            self,
            token_1t=self.token_1t[:, mine_t],
            position_1t=self.position_1t[:, mine_t],
            target_1t=self.target_1t[:, mine_t],
            response_1t=response_1t,
            place_r=place_1t[:, mine_t][response_1t],
            number_1t=self.number_1t[:, mine_t],
        )

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
            number_1t=self.number_1t.to(device),
        )


def deal(batch: Batch, rank: int, ranks: int, *, quadratic_at: float = math.inf) -> Batch:
    """This data-parallel rank's share; ranks get even work. Attention costs as much as the rest at `quadratic_at` tokens."""
    shares = spread([sequence.length for sequence in batch.sequences], ranks, quadratic_at=quadratic_at)
    assert shares is not None, "without a limit every sequence fits"
    return batch.take(shares[rank])


def micro_batches_needed(batch: Batch, *, token_budget: int) -> int:
    """How many micro-batches `pack` makes without a `count`; 1 if there are no sequences."""
    return bins_needed([sequence.length for sequence in batch.sequences], token_budget)


def pack(
    batch: Batch,
    *,
    token_budget: int,
    count: int | None = None,
    shape: RowShape = RowShape(),
    quadratic_at: float = math.inf,
) -> list[MicroBatch]:
    """Micro-batches of at most `token_budget` tokens before padding and of even work; a longer sequence gets one of its own.

    Ranks that take part in each other's collectives agree on a `count`; some micro-batches may then hold only padding.
    Raises `DataError` if it is less than `micro_batches_needed`.

    Args:
        batch: the sequences, and the columns that `place_r` points into.
        token_budget: tokens that a micro-batch may hold before padding.
        count: exactly how many micro-batches; None for as few as needed.
        shape: multiples to which sequences and rows are padded.
        quadratic_at: tokens at which attention costs as much as the rest of the model.

    """
    lengths = [sequence.length for sequence in batch.sequences]
    needed = bins_needed(lengths, token_budget)
    count = needed if count is None else count
    if count < needed:
        raise DataError(
            f"count={count} micro-batches of token_budget={token_budget} do not hold {sum(lengths)} tokens",
            hint=f"at least {needed} are needed",
        )
    # Even work can leave no bin with room for the last sequences; even token counts always fit.
    bins = spread(lengths, count, room=token_budget, quadratic_at=quadratic_at) or spread(
        lengths, count, room=token_budget
    )
    assert bins is not None, "`count` is at least the number needed"
    starts = [0, *accumulate(batch.response_lengths)]
    numbers = [0, *accumulate(lengths)]
    return [_row(batch.sequences, indices, starts, numbers, shape) for indices in bins]


def _row(
    sequences: Sequence[Demonstration], indices: list[int], starts: list[int], numbers: list[int], shape: RowShape
) -> MicroBatch:
    tokens: list[int] = []
    targets: list[int] = []
    response: list[bool] = []
    lengths: list[int] = []
    places: list[Tensor] = []
    number: list[int] = []
    for index in indices:
        sequence = sequences[index]
        whole = [*sequence.prompt.tokens, *sequence.response]
        prompt_targets = len(sequence.prompt.tokens) - 1
        padding = -sequence.length % shape.sequence_multiple
        tokens += whole[:-1] + [0] * padding
        targets += whole[1:] + [0] * padding
        response += [False] * prompt_targets + [True] * len(sequence.response) + [False] * padding
        number += [*range(numbers[index], numbers[index + 1]), *[-1] * padding]
        lengths.append(sequence.length + padding)
        places.append(torch.arange(starts[index], starts[index + 1]))
    # The rest of the row is one more sequence, of token 0, that no other attends to and that has no response targets.
    padding = -len(tokens) % shape.row_multiple if tokens else shape.row_multiple
    if padding:
        tokens += [0] * padding
        targets += [0] * padding
        response += [False] * padding
        number += [-1] * padding
        lengths.append(padding)
    return MicroBatch(
        token_1t=torch.tensor([tokens]),
        position_1t=torch.cat([torch.arange(length) for length in lengths])[None],
        target_1t=torch.tensor([targets]),
        response_1t=torch.tensor([response]),
        cumulative_lengths=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        lengths=tuple(lengths),
        place_r=torch.cat(places) if places else torch.zeros(0, dtype=torch.long),
        number_1t=torch.tensor([number]),
    )
