"""Log-prob and entropy from hidden states: the LM head on selected rows only.

Logits exist one tile at a time, forward and backward (they are recomputed: one more matrix product in exchange for memory
that does not grow with tokens; `lm_head_loss` saves that product if the loss is known). Kept for backward: the selected
hidden states, the weight, two floats per token. Other rows cost nothing. Forward: one collective of four floats per token.
Backward: one all-reduce of the selected rows' d_hidden, which is a partial sum over each rank's columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_fork.distributed import collectives
from megatron_fork.distributed.collectives import Group
from megatron_fork.errors import StatisticsError
from megatron_fork.vocab_parallel.config import VocabParallelConfig
from megatron_fork.vocab_parallel.head import Head
from megatron_fork.vocab_parallel.shard import (
    TokenStatistics,
    VocabularyShard,
    over_ranks,
    refuse_bad,
    statistics_of,
)
from megatron_fork.vocab_parallel.statistics import inverse_of
from megatron_fork.vocab_parallel.tile import kernels_for


def lm_head_statistics(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    rows: Tensor | None = None,
    group: Group = None,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    config: VocabParallelConfig | None = None,
    weight_gradient: Tensor | None = None,
) -> TokenStatistics:
    """Statistics of `softmax(hidden @ weight.T / temperature)` at the chosen rows.

    Args:
        hidden: `[tokens, d]`, the same on every rank of `group`.
        weight: `[vocab/tp, d]`, this rank's rows of the LM head.
        targets: `[tokens]` int64, global vocabulary ids.
        rows: bool `[tokens]` or int64 indices of the tokens to compute; None for all. There may be none.
        group: ranks that share the vocabulary; None for one rank.
        temperature: the rollout's decoding temperature.
        vocab_size: true vocabulary size; rows of `weight` at or past it (globally) are padding.
        chunk_tokens: tokens of a tile of logits, by default chosen for the device.
        config: kernels and memory.
        weight_gradient: `[vocab/tp, d]` float32 (Megatron's `main_grad`): d_weight is added to it in backward, and autograd
            gets zeros.

    Returns:
        `TokenStatistics` of float32 `[len(rows)]` in row order, in nats, differentiable in `hidden` and `weight`; the
        gradient of `hidden` is accumulated in float32 and summed over `group`.

    Raises:
        StatisticsError: a target is not a token or the logits have no softmax, with the token; shapes do not match.

    """
    chosen = ChosenRows.of(hidden, weight, targets, rows)
    config = config or VocabParallelConfig()
    head = head_of(weight, vocab_size, group, temperature, config)
    if chunk_tokens is None:
        chunk_tokens = head.tile_tokens(config.chunk_bytes(weight.device.type))
    logprob, entropy = _LmHeadStatistics.apply(
        chosen.hidden, weight, chosen.targets, head, max(1, chunk_tokens), weight_gradient
    )
    statistics = TokenStatistics(logprob, entropy)
    refuse_bad(statistics, chosen.targets, head.shard, chosen.tokens)
    return statistics


class ChosenRows:
    """Hidden states and targets of the chosen rows, and the rows' indices (None: all of them)."""

    def __init__(self, hidden: Tensor, targets: Tensor, tokens: Tensor | None) -> None:
        self.tokens = tokens
        self.hidden = hidden if tokens is None else hidden[tokens]
        self.targets = targets if tokens is None else targets[tokens]

    @classmethod
    def of(cls, hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor | None) -> ChosenRows:
        if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
            raise StatisticsError(
                f"hidden has shape {list(hidden.shape)}, weight {list(weight.shape)}",
                hint="give [tokens, d] and [vocab/tp, d]",
            )
        if targets.shape != hidden.shape[:1]:
            raise StatisticsError(
                f"hidden has shape {list(hidden.shape)}, targets {list(targets.shape)}",
                hint="give one target per token",
            )
        if rows is not None and rows.dtype == torch.bool:
            if rows.shape != targets.shape:
                raise StatisticsError(
                    f"rows has shape {list(rows.shape)}, targets {list(targets.shape)}", hint="give one flag per token"
                )
            rows = rows.nonzero()[:, 0]
        return cls(hidden, targets, rows)


def head_of(
    weight: Tensor, vocab_size: int | None, group: Group, temperature: float, config: VocabParallelConfig
) -> Head:
    shard = VocabularyShard.of(weight.shape[0], vocab_size, group)
    return Head(weight.detach()[: shard.columns], shard, inverse_of(temperature), kernels_for(config.kernels, weight))


def chunks_of(tokens: int, chunk_tokens: int) -> list[slice]:
    """Chunks of nearly equal size, none larger than `chunk_tokens`."""
    count = -(-tokens // chunk_tokens)
    return [slice(tokens * index // count, tokens * (index + 1) // count) for index in range(count)]


def given_weight_gradient(weight_vd: Tensor, gradient_vd: Tensor | None, buffer_vd: Tensor | None) -> Tensor | None:
    """What autograd gets for the weight: the gradient, or zeros that take no memory if the buffer has it."""
    if buffer_vd is None:
        return None if gradient_vd is None else gradient_vd.to(weight_vd.dtype)
    return weight_vd.new_zeros(()).expand(weight_vd.shape)


class _LmHeadStatistics(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_td: Tensor,
        weight_vd: Tensor,
        targets_t: Tensor,
        head: Head,
        chunk_tokens: int,
        weight_gradient_vd: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        chunks = chunks_of(hidden_td.shape[0], chunk_tokens)
        partial_4t = head.no_columns(hidden_td.shape[0])
        for columns in head.column_tiles():
            weight_kd = head.operand(head.weight_vd[columns], "weight")
            for chunk in chunks:
                logits_ck = head.logits(head.operand(hidden_td[chunk], "hidden"), weight_kd)
                partial_4t[:, chunk] = head.extended(partial_4t[:, chunk], logits_ck, targets_t[chunk], columns)
        log_z_t, logprob_t, entropy_t = statistics_of(over_ranks(partial_4t, head.shard))
        ctx.save_for_backward(hidden_td, weight_vd, targets_t, log_z_t, entropy_t)
        ctx.head, ctx.chunks, ctx.weight_gradient_vd = head, chunks, weight_gradient_vd
        ctx.set_materialize_grads(False)
        return logprob_t, entropy_t

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_logprob_t: Tensor | None, of_entropy_t: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_td, weight_vd, targets_t, log_z_t, entropy_t = ctx.saved_tensors
        head: Head = ctx.head
        if of_logprob_t is None:
            of_logprob_t = torch.zeros_like(log_z_t)
        d_hidden_td = torch.zeros(hidden_td.shape, dtype=head.sum_dtype, device=hidden_td.device)
        buffer_vd: Tensor | None = ctx.weight_gradient_vd
        gradient_vd = buffer_vd
        if buffer_vd is None and ctx.needs_input_grad[1]:
            gradient_vd = torch.empty_like(weight_vd, memory_format=torch.contiguous_format)
            # Padding has no gradient, and without rows the whole weight has none.
            gradient_vd[head.shard.columns if ctx.chunks else 0 :] = 0.0
        for columns in head.column_tiles():
            weight_kd = head.operand(head.weight_vd[columns], "weight")
            d_weight_kd = None if gradient_vd is None else _sum_of(gradient_vd[columns], head)
            for index, chunk in enumerate(ctx.chunks):
                hidden_cd = head.operand(hidden_td[chunk], "hidden")
                head.add_gradients(
                    head.logits(hidden_cd, weight_kd),
                    targets_t[chunk],
                    columns,
                    (entropy_t[chunk], of_logprob_t[chunk], None if of_entropy_t is None else of_entropy_t[chunk]),
                    log_z_t[chunk],
                    hidden_cd,
                    weight_kd,
                    d_hidden_td[chunk],
                    d_weight_kd,
                    first=index == 0 and buffer_vd is None,
                )
            if (
                ctx.chunks
                and d_weight_kd is not None
                and gradient_vd is not None
                and gradient_vd.dtype != head.sum_dtype
            ):
                gradient_vd[columns] = d_weight_kd  # summed in float32 over all tokens, rounded once
        collectives.all_reduce_sum(d_hidden_td, head.shard.group)
        given = given_weight_gradient(weight_vd, gradient_vd, buffer_vd)
        return d_hidden_td.to(hidden_td.dtype), given, None, None, None, None


def _sum_of(gradient_kd: Tensor, head: Head) -> Tensor:
    """Where a tile's part of d_weight is summed: in place, or in scratch if the gradient is in half precision."""
    if gradient_kd.dtype == head.sum_dtype:
        return gradient_kd
    return head.scratch.take("d_weight", gradient_kd.shape, head.sum_dtype, gradient_kd.device)
