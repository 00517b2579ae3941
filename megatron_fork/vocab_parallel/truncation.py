"""Log-prob and entropy under the softmax over a token's kept set: what top-k, top-p or min-p left to be drawn from.

The full softmax of a token does not help here: of the sum Z only the kept columns' part counts. Design: the kept logits alone
are computed, each as one product of a hidden state with one row of the LM head, which is few rows beside a vocabulary of 152k
and asks nothing of the head's tiles. Each rank has the kept tokens of its own shard; their four numbers (see `shard`) are
combined over the ranks by one collective of four floats a token, exactly as the whole vocabulary's are. With q the softmax over
the kept set K, H its entropy, and gradients g of log-prob and e of entropy,

    d / d x_j = g ([j = target] - q_j) - e q_j (ln q_j + H)    for j in K, and 0 elsewhere.

Kept for backward: the hidden states of the rows, the weight, and the kept logits. Backward: one all-reduce of d_hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_fork.distributed import collectives
from megatron_fork.distributed.collectives import Group
from megatron_fork.errors import StatisticsError
from megatron_fork.vocab_parallel.config import VocabParallelConfig
from megatron_fork.vocab_parallel.lm_head import ChosenRows, lm_head_statistics
from megatron_fork.vocab_parallel.shard import TokenStatistics, VocabularyShard, over_ranks, refuse_bad, statistics_of
from megatron_fork.vocab_parallel.statistics import inverse_of
from megatron_fork.vocab_parallel.tile import LOWEST_EXPONENT, accumulation_dtype

# Bytes of one operand of the products that run at a time; there are two.
_OPERAND_BYTES = 64 << 20


@dataclass(frozen=True)
class KeptSets:
    """The kept set of each of some tokens, one after the other; a token without any keeps the whole vocabulary."""

    id_n: Tensor
    """`[kept tokens of all rows]` int32 or int64, global vocabulary ids."""
    count_t: Tensor
    """`[tokens]` int64, how many of them each token has; 0: the whole vocabulary."""

    def take(self, index_r: Tensor) -> KeptSets:
        """The sets of the tokens at `index_r`, int64 `[rows]`, in that order."""
        count_r = self.count_t[index_r]
        shift_r = self._first_t[index_r] - (count_r.cumsum(0) - count_r)
        place_n = torch.arange(int(count_r.sum()), device=count_r.device) + shift_r.repeat_interleave(count_r)
        return KeptSets(self.id_n[place_n], count_r)

    @cached_property
    def _first_t(self) -> Tensor:
        return self.count_t.cumsum(0) - self.count_t

    def to(self, device: torch.device) -> KeptSets:
        return KeptSets(self.id_n.to(device), self.count_t.to(device))


class ReplayedStatistics(NamedTuple):
    """Of tokens that were drawn from kept sets, in nats; a token that keeps the whole vocabulary has one entropy twice."""

    logprob: Tensor
    """Under the softmax over the kept set."""
    entropy: Tensor
    """Of the softmax over the whole vocabulary: what tokens are selected by."""
    kept_entropy: Tensor
    """Of the softmax over the kept set."""


def truncated_statistics(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    kept: KeptSets,
    *,
    group: Group = None,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    weight_gradient: Tensor | None = None,
) -> TokenStatistics:
    """Statistics of `softmax(hidden @ weight.T / temperature)` over each row's kept set.

    Args:
        hidden: `[rows, d]`, the same on every rank of `group`.
        weight: `[vocab/tp, d]`, this rank's rows of the LM head.
        targets: `[rows]` int64, global ids, each in its row's set.
        kept: a set for each row, none empty, the same on every rank.
        group: ranks that share the vocabulary; None for one rank.
        temperature: the rollout's decoding temperature.
        vocab_size: true vocabulary size.
        weight_gradient: as in `lm_head_statistics`.

    Returns:
        `TokenStatistics` of float32 `[rows]`, differentiable in `hidden` and `weight`.

    Raises:
        StatisticsError: shapes do not match; a set is empty, holds a token twice or outside of the vocabulary, or does not
            hold the target; the kept logits have no softmax.

    """
    if hidden.shape[:1] != targets.shape or kept.count_t.shape != targets.shape:
        raise StatisticsError(
            f"hidden has shape {list(hidden.shape)}, targets {list(targets.shape)}, with {len(kept.count_t)} kept sets",
            hint="give one target and one kept set per row",
        )
    kept = KeptSets(kept.id_n.long(), kept.count_t)
    shard = VocabularyShard.of(weight.shape[0], vocab_size, group)
    _refuse_sets(kept, targets, shard.vocab_size)
    work = _Work(shard, inverse_of(temperature), kept, targets)
    statistics = TokenStatistics(*_Truncated.apply(hidden, weight, work, weight_gradient))
    refuse_bad(statistics, targets, shard, None)
    return statistics


def replayed_statistics(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    kept: KeptSets,
    *,
    rows: Tensor | None = None,
    config: VocabParallelConfig | None = None,
    **options: Any,
) -> ReplayedStatistics:
    """Statistics of tokens that were drawn from kept sets; where a row keeps the whole vocabulary, they are the full softmax's.

    Arguments as in `lm_head_statistics`; `kept` has a set for each chosen row, in row order. Where all rows are truncated, the
    log-prob has no gradient through the whole vocabulary, and backward computes none unless the entropy has one.
    """
    chosen = ChosenRows.of(hidden, weight, targets, rows)
    full = lm_head_statistics(hidden, weight, targets, rows=rows, config=config, **options)
    cut_r = kept.count_t.nonzero()[:, 0]
    truncated = truncated_statistics(chosen.hidden[cut_r], weight, chosen.targets[cut_r], kept.take(cut_r), **options)
    if len(cut_r) == len(full.logprob):
        return ReplayedStatistics(truncated.logprob, full.entropy, truncated.entropy)
    return ReplayedStatistics(
        full.logprob.index_put((cut_r,), truncated.logprob),
        full.entropy,
        full.entropy.index_put((cut_r,), truncated.entropy),
    )


def _refuse_sets(kept: KeptSets, targets_t: Tensor, vocab_size: int) -> None:
    """All ranks have the same sets, so that all of them raise. On a GPU this waits for the result once."""
    row_n = torch.arange(len(targets_t), device=targets_t.device).repeat_interleave(kept.count_t)
    found_t = torch.zeros_like(targets_t).index_add_(0, row_n, (kept.id_n == targets_t[row_n]).long())
    foreign_n = (kept.id_n < 0) | (kept.id_n >= vocab_size)
    twice = torch.unique(row_n * vocab_size + kept.id_n.clamp(0, vocab_size - 1)).numel() < kept.id_n.numel()
    if not twice and not bool((found_t != 1).any() | foreign_n.any()):
        return
    hint = "the engine's report of what it sampled from is wrong"
    if foreign_n.any():
        place = int(foreign_n.nonzero()[0, 0])
        raise StatisticsError(
            f"row {int(row_n[place])} keeps the token {int(kept.id_n[place])}, outside the vocabulary [0, {vocab_size})",
            hint=hint,
        )
    if twice:
        raise StatisticsError("a kept set holds a token twice", hint=hint)
    row = int((found_t != 1).nonzero()[0, 0])
    raise StatisticsError(
        f"row {row} keeps {int(kept.count_t[row])} tokens, and its target {int(targets_t[row])} is not among them",
        hint=hint,
    )


class _Work:
    """The kept tokens of this rank's shard, and the products with their rows of the weight."""

    def __init__(self, shard: VocabularyShard, inverse_temperature: float, kept: KeptSets, targets_t: Tensor) -> None:
        row_n = torch.arange(len(targets_t), device=targets_t.device).repeat_interleave(kept.count_t)
        column_n, held_n = shard.locate(kept.id_n)
        self.shard, self.inverse_temperature = shard, inverse_temperature
        self.row_n, self.column_n = row_n[held_n], column_n[held_n]
        self.is_target_n = kept.id_n[held_n] == targets_t[self.row_n]

    def parts(self, width: int, dtype: torch.dtype) -> Iterator[slice]:
        """The kept tokens in parts whose operands fit."""
        size = max(1, _OPERAND_BYTES // (width * dtype.itemsize))
        return (slice(start, start + size) for start in range(0, len(self.row_n), size))

    def logits(self, hidden_td: Tensor, weight_vd: Tensor) -> Tensor:
        """`[kept tokens of the shard]`, scaled by the temperature, in the dtype of the sums."""
        dtype = accumulation_dtype(weight_vd.dtype)
        logits_n = torch.empty(len(self.row_n), dtype=dtype, device=weight_vd.device)
        for part in self.parts(weight_vd.shape[1], dtype):
            left_nd, right_nd = self.operands(hidden_td, weight_vd, part, dtype)
            logits_n[part] = torch.linalg.vecdot(left_nd, right_nd)
        return logits_n.mul_(self.inverse_temperature)

    def operands(self, hidden_td: Tensor, weight_vd: Tensor, part: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return hidden_td[self.row_n[part]].to(dtype), weight_vd[self.column_n[part]].to(dtype)

    def sums(self, logits_n: Tensor, tokens: int) -> Tensor:
        """`[4, tokens]` of this shard, as `TileKernels.sweep` gives them for a tile; a row may have none of its tokens here."""
        partial_4t = logits_n.new_zeros(4, tokens)
        maximum_t, sum_t, weighted_t, target_t = partial_4t
        maximum_t.fill_(torch.finfo(logits_n.dtype).min)
        maximum_t.scatter_reduce_(0, self.row_n, logits_n.nan_to_num(nan=torch.inf), "amax")
        exponent_n = logits_n - maximum_t[self.row_n]
        sum_t.index_add_(0, self.row_n, exponent_n.exp())
        weighted_t.index_add_(0, self.row_n, exponent_n.clamp(min=LOWEST_EXPONENT) * exponent_n.exp())
        target_t.index_add_(0, self.row_n, torch.where(self.is_target_n, logits_n, 0.0))
        return partial_4t


class _Truncated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_td: Tensor, weight_vd: Tensor, work: _Work, weight_gradient_vd: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        logits_n = work.logits(hidden_td, weight_vd)
        log_z_t, logprob_t, entropy_t = statistics_of(over_ranks(work.sums(logits_n, len(hidden_td)), work.shard))
        ctx.save_for_backward(hidden_td, weight_vd, logits_n, log_z_t, entropy_t)
        ctx.work, ctx.weight_gradient_vd = work, weight_gradient_vd
        ctx.set_materialize_grads(False)
        return logprob_t, entropy_t

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_logprob_t: Tensor | None, of_entropy_t: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_td, weight_vd, logits_n, log_z_t, entropy_t = ctx.saved_tensors
        work: _Work = ctx.work
        of_logit_n = _gradient(work, logits_n, log_z_t, entropy_t, of_logprob_t, of_entropy_t)
        dtype = logits_n.dtype
        d_hidden_td = torch.zeros(hidden_td.shape, dtype=dtype, device=hidden_td.device)
        buffer_vd: Tensor | None = ctx.weight_gradient_vd
        sum_vd = buffer_vd
        if buffer_vd is None and ctx.needs_input_grad[1]:
            sum_vd = torch.zeros(weight_vd.shape, dtype=dtype, device=weight_vd.device)
        for part in work.parts(weight_vd.shape[1], dtype):
            left_nd, right_nd = work.operands(hidden_td, weight_vd, part, dtype)
            d_hidden_td.index_add_(0, work.row_n[part], right_nd.mul_(of_logit_n[part, None]))
            if sum_vd is not None:
                sum_vd.index_add_(0, work.column_n[part], left_nd.mul_(of_logit_n[part, None]))
        collectives.all_reduce_sum(d_hidden_td, work.shard.group)
        given = None if sum_vd is None else sum_vd.to(weight_vd.dtype)
        if buffer_vd is not None:  # autograd gets zeros that take no memory
            given = weight_vd.new_zeros(()).expand(weight_vd.shape)
        return d_hidden_td.to(hidden_td.dtype), given, None, None


def _gradient(
    work: _Work,
    logits_n: Tensor,
    log_z_t: Tensor,
    entropy_t: Tensor,
    of_logprob_t: Tensor | None,
    of_entropy_t: Tensor | None,
) -> Tensor:
    """Of the kept logits before the temperature, `[kept tokens of the shard]`."""
    log_q_n = (logits_n - log_z_t[work.row_n]).clamp(min=LOWEST_EXPONENT)
    q_n = log_q_n.exp()
    gradient_n = torch.zeros_like(q_n)
    if of_logprob_t is not None:
        gradient_n += of_logprob_t.to(q_n.dtype)[work.row_n] * (work.is_target_n.to(q_n.dtype) - q_n)
    if of_entropy_t is not None:
        gradient_n -= of_entropy_t.to(q_n.dtype)[work.row_n] * q_n * (log_q_n + entropy_t[work.row_n])
    return gradient_n.mul_(work.inverse_temperature)
