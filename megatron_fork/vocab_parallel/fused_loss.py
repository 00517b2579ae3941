"""A loss computed from hidden states, with its gradients formed while the logits still exist.

If a token's loss depends only on that token's statistics, its coefficients are known as soon as the statistics are: the
gradient tile overwrites the logits in the forward pass, and three matrix products do the work of four. Design: a chunk of rows
keeps its logits over all the shard's columns (160 MiB on a CPU), one collective of four floats per token completes its
statistics, the loss is evaluated on them, and the chunk's gradients are summed in float32. Kept for backward: d_hidden of the
selected rows and d_weight, which are only multiplied by the upstream scalar.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_fork.distributed import collectives
from megatron_fork.distributed.collectives import Group
from megatron_fork.vocab_parallel.config import VocabParallelConfig
from megatron_fork.vocab_parallel.head import Head
from megatron_fork.vocab_parallel.lm_head import ChosenRows, chunks_of, given_weight_gradient, head_of
from megatron_fork.vocab_parallel.shard import TokenStatistics, over_ranks, refuse_bad, statistics_of

# From the statistics of some of the chosen rows, and their slice of the row order, to their part of the loss and to detached
# sums: the parts add up to the whole.
RowLoss = Callable[[TokenStatistics, slice], tuple[Tensor, dict[str, Tensor]]]


def lm_head_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    loss: RowLoss,
    *,
    rows: Tensor | None = None,
    group: Group = None,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    config: VocabParallelConfig | None = None,
    weight_gradient: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of `loss` over chunks of the chosen rows, differentiable in `hidden` and `weight`, and its other sums.

    Args:
        hidden: `[tokens, d]`; see `lm_head_statistics` for this and the following arguments.
        weight: `[vocab/tp, d]`.
        targets: `[tokens]` int64.
        loss: additive over tokens; see `RowLoss`. It is called on every rank of `group` with the same statistics; if no row
            is chosen, it is called once without any.
        rows: the tokens to compute.
        group: ranks that share the vocabulary.
        temperature: of the softmax.
        vocab_size: without the padding.
        chunk_tokens: rows whose logits exist at a time, by default as many as fit in `config.chunk_mib`.
        config: kernels and memory.
        weight_gradient: where d_weight is added in backward.

    Raises:
        StatisticsError: as `lm_head_statistics`.

    """
    chosen = ChosenRows.of(hidden, weight, targets, rows)
    config = config or VocabParallelConfig()
    head = head_of(weight, vocab_size, group, temperature, config)
    if chunk_tokens is None:
        chunk_tokens = head.row_tokens(config.chunk_bytes(weight.device.type))
    work = _Work(head, loss, chunks_of(chosen.targets.numel(), max(1, chunk_tokens)) or [slice(0, 0)], chosen)
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        total = _LmHeadLoss.apply(chosen.hidden, weight, work, weight_gradient)
    else:
        total = work.run(chosen.hidden, None, None)
    return total, work.sums


class _Work:
    """The work of one call over its chunks: the sums, and the gradients if they are needed."""

    def __init__(self, head: Head, loss: RowLoss, chunks: list[slice], chosen: ChosenRows) -> None:
        self.head, self.loss, self.chunks, self.chosen = head, loss, chunks, chosen
        self.sums: dict[str, Tensor] = {}

    def run(self, hidden_td: Tensor, d_hidden_td: Tensor | None, d_weight_vd: Tensor | None) -> Tensor:
        """The loss; adds this rank's part of the gradients to `d_hidden_td` and `d_weight_vd` if they are given."""
        total = torch.zeros((), dtype=self.head.sum_dtype, device=hidden_td.device)
        for index, chunk in enumerate(self.chunks):
            targets_c = self.chosen.targets[chunk]
            hidden_cd = self.head.operand(hidden_td[chunk], "hidden")
            logits, partial_4c = self._logits(hidden_cd, targets_c, keep=d_hidden_td is not None)
            log_z_c, logprob_c, entropy_c = statistics_of(over_ranks(partial_4c, self.head.shard))
            tokens = chunk_tokens(self.chosen.tokens, chunk)
            refuse_bad(TokenStatistics(logprob_c, entropy_c), targets_c, self.head.shard, tokens)
            part, of_logprob_c, of_entropy_c = self._evaluate(logprob_c, entropy_c, chunk)
            total += part
            if d_hidden_td is None:
                continue
            for columns, logits_ck in zip(self.head.column_tiles(hidden_cd.shape[0]), logits, strict=True):
                self.head.add_gradients(
                    logits_ck,
                    targets_c,
                    columns,
                    (entropy_c, of_logprob_c, of_entropy_c),
                    log_z_c,
                    hidden_cd,
                    self.head.operand(self.head.weight_vd[columns], "weight"),
                    d_hidden_td[chunk],
                    None if d_weight_vd is None else d_weight_vd[columns],
                    first=index == 0,
                )
        return total

    def _logits(self, hidden_cd: Tensor, targets_c: Tensor, *, keep: bool) -> tuple[list[Tensor], Tensor]:
        tokens = hidden_cd.shape[0]
        partial_4c = self.head.no_columns(tokens)
        size = tokens * self.head.shard.columns if keep else 0
        whole = self.head.scratch.take("all logits", (size,), self.head.sum_dtype, hidden_cd.device)
        kept = []
        for columns in self.head.column_tiles(tokens):
            width = columns.stop - columns.start
            # One tile after the other, each contiguous.
            place = whole[tokens * columns.start : tokens * columns.stop].view(tokens, width) if keep else None
            weight_kd = self.head.operand(self.head.weight_vd[columns], "weight")
            logits_ck = self.head.logits(hidden_cd, weight_kd, place)
            partial_4c = self.head.extended(partial_4c, logits_ck, targets_c, columns)
            if keep:
                kept.append(logits_ck)
        return kept, partial_4c

    def _evaluate(self, logprob_c: Tensor, entropy_c: Tensor, chunk: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        """(loss, d loss / d log-prob, d loss / d entropy) of one chunk; None if the entropy has no gradient."""
        with torch.enable_grad():
            leaves = TokenStatistics(logprob_c.detach().requires_grad_(), entropy_c.detach().requires_grad_())
            part, sums = self.loss(leaves, chunk)
            of_logprob_c, of_entropy_c = (
                torch.autograd.grad(part, tuple(leaves), allow_unused=True) if part.requires_grad else (None, None)
            )
        for name, value in sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        return part.detach(), torch.zeros_like(logprob_c) if of_logprob_c is None else of_logprob_c, of_entropy_c


def chunk_tokens(tokens: Tensor | None, chunk: slice) -> Tensor:
    """The user's indices of a chunk's rows, for messages."""
    return torch.arange(chunk.start, chunk.stop) if tokens is None else tokens[chunk]


class _LmHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_td: Tensor, weight_vd: Tensor, work: _Work, weight_gradient_vd: Tensor | None
    ) -> Tensor:
        head = work.head
        d_hidden_td = torch.zeros(hidden_td.shape, dtype=head.sum_dtype, device=hidden_td.device)
        d_weight_vd = None
        if ctx.needs_input_grad[1]:
            d_weight_vd = torch.empty(weight_vd.shape, dtype=head.sum_dtype, device=weight_vd.device)
            # Padding has no gradient; the rest is written by the first chunk, even if that has no rows.
            d_weight_vd[head.shard.columns :] = 0.0
        loss = work.run(hidden_td, d_hidden_td, d_weight_vd)
        collectives.all_reduce_sum(d_hidden_td, head.shard.group)
        ctx.gradients = d_hidden_td, d_weight_vd
        ctx.hidden_dtype = hidden_td.dtype
        ctx.weight_vd, ctx.weight_gradient_vd = weight_vd, weight_gradient_vd
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # No reference is kept: a gradient that nothing else references becomes `weight.grad` without a copy.
        d_hidden_td, d_weight_vd = ctx.gradients
        ctx.gradients = None, None
        if d_weight_vd is not None:
            if ctx.weight_gradient_vd is not None:
                ctx.weight_gradient_vd.addcmul_(d_weight_vd, upstream)
            elif upstream.is_cuda or upstream != 1.0:
                d_weight_vd.mul_(upstream)
        given = given_weight_gradient(ctx.weight_vd, d_weight_vd, ctx.weight_gradient_vd)
        return d_hidden_td.mul_(upstream).to(ctx.hidden_dtype), given, None, None
