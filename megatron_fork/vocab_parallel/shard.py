"""The softmax statistics of one vocabulary shard, and their exact combination over tiles and ranks.

A tile of columns is swept once and gives four numbers per token, relative to its own maximum m:

    m = max_j x_j      s = sum_j e^(x_j - m)      u = sum_j (x_j - m) e^(x_j - m)      x_target (0 if another tile has it)

With M = max over tiles of m and w = e^(m - M), the sums over all of them are S = sum w s and U = sum w (u + (m - M) s):
the same four numbers again, whether the tiles are a rank's or all ranks'. In the end

    log Z = M + ln S          logprob = x_target - M - ln S       entropy = ln S - U / S       [nats]

Four floats per token on the wire, in one collective; no rank ever sees another's logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_fork.distributed import collectives
from megatron_fork.errors import StatisticsError
from megatron_fork.vocab_parallel.tile import LOWEST_EXPONENT


class TokenStatistics(NamedTuple):
    """Log-prob of the target and entropy of the distribution, in nats, float32, one value per token."""

    logprob: Tensor
    entropy: Tensor


@dataclass(frozen=True)
class VocabularyShard:
    """The columns that this rank holds: global ids `[offset, offset + columns)`; padding past the vocabulary is left out."""

    size: int  # columns with the padding, the same on every rank
    offset: int
    columns: int
    vocab_size: int
    group: collectives.Group

    @classmethod
    def of(cls, size: int, vocab_size: int | None, group: collectives.Group) -> VocabularyShard:
        ranks, offset = collectives.size(group), collectives.rank(group) * size
        end = size * ranks if vocab_size is None else vocab_size
        if end > size * ranks:
            raise StatisticsError(
                f"vocab_size={end} is more than the {size} columns of each of {ranks} rank(s)",
                hint="pass the group that shares the vocabulary, and on each rank its own columns",
            )
        return cls(size, offset, min(max(end - offset, 0), size), end, group)

    def locate(self, targets_t: Tensor, first: int = 0, columns: int | None = None) -> tuple[Tensor, Tensor]:
        """Column of each target in a tile of the shard (0 if the tile does not have it), and whether the tile has it."""
        local_t = targets_t - (self.offset + first)
        held_t = (local_t >= 0) & (local_t < (self.columns if columns is None else columns))
        return torch.where(held_t, local_t, 0), held_t


def combine(partial_n4t: Tensor) -> Tensor:
    """`[4, tokens]` of the union of disjoint tiles, from `[tiles, 4, tokens]`."""
    maximum_nt, sum_nt, weighted_nt, target_nt = partial_n4t.unbind(1)
    maximum_nt = maximum_nt.clamp(min=torch.finfo(maximum_nt.dtype).min)
    maximum_t = maximum_nt.amax(0)
    distance_nt = (maximum_nt - maximum_t).clamp(min=LOWEST_EXPONENT)
    share_nt = distance_nt.exp()
    return torch.stack(
        [
            maximum_t,
            (share_nt * sum_nt).sum(0),
            (share_nt * (weighted_nt + distance_nt * sum_nt)).sum(0),
            target_nt.sum(0),
        ]
    )


def over_ranks(partial_4t: Tensor, shard: VocabularyShard) -> Tensor:
    """`combine` over the ranks of the shard's group: one all-gather of four floats per token.

    Ranks with shards of different sizes would place each other's columns wrongly: the sizes are sent as one more token,
    and every result is NaN if they differ, for `refuse_bad` to look into. Nothing here waits for a GPU.
    """
    if collectives.size(shard.group) == 1:
        return partial_4t
    with_size = torch.cat([partial_4t, partial_4t.new_full((4, 1), shard.size)], dim=1)
    partial_r4t = collectives.all_gather(with_size, shard.group)
    differ = (partial_r4t[:, 0, -1] != shard.size).any()
    return combine(partial_r4t[:, :, :-1]).masked_fill(differ, torch.nan)


def statistics_of(partial_4t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(log Z, logprob, entropy), each `[tokens]`, from the four numbers of the whole vocabulary."""
    maximum_t, sum_t, weighted_t, target_t = partial_4t
    log_sum_t = sum_t.log()
    # Not x_target - log Z: for large logits that would round the difference to the resolution of the logits.
    return maximum_t + log_sum_t, target_t - maximum_t - log_sum_t, log_sum_t - weighted_t / sum_t


def refuse_bad(statistics: TokenStatistics, targets_t: Tensor, shard: VocabularyShard, tokens: Tensor | None) -> None:
    """Raise `StatisticsError` for the first token with an invalid target or without a softmax; `tokens`: the user's indices.

    Every rank has the same targets and statistics, so that all of them raise. On a GPU this waits for the result: once
    a call.
    """
    foreign_t = (targets_t < 0) | (targets_t >= shard.vocab_size)
    bad_t = foreign_t | statistics.entropy.isnan() | statistics.logprob.isnan()
    if not bad_t.any():
        return
    sizes = collectives.gather_objects(shard.size, shard.group)
    if len(set(sizes)) > 1:
        raise StatisticsError(
            f"the ranks of the group hold {sizes} columns",
            hint="pad the vocabulary so that every rank has the same number of columns",
        )
    place = int(bad_t.nonzero()[0, 0])
    token = place if tokens is None else int(tokens[place])
    if foreign_t[place]:
        raise StatisticsError(
            f"target {int(targets_t[place])} of token {token} is outside the vocabulary [0, {shard.vocab_size})",
            hint="leave out tokens without a target with `rows`",
        )
    raise StatisticsError(
        f"the logits of token {token} hold NaN or +inf, or no finite value ({int(bad_t.sum())} such token(s))",
        hint="the policy may have diverged or the checkpoint may be wrong: the hidden state or the LM head is not finite",
    )
