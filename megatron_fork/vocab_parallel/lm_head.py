"""Log-prob and entropy from hidden states: the LM head on selected rows only.

Logits exist one tile at a time, forward and backward (they are recomputed: one more matrix product in exchange for memory
that does not grow with tokens; `lm_head_loss` saves that product if the loss is known). Kept for backward: the selected
hidden states, the weight, two floats per token. Other rows cost nothing. Forward: one collective of four floats per token.
Backward: one all-reduce of the selected rows' d_hidden, which is a partial sum over each rank's columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_fork.distributed import collectives
from megatron_fork.distributed.collectives import Group
from megatron_fork.errors import StatisticsError
from megatron_fork.vocab_parallel.config import VocabParallelConfig
from megatron_fork.vocab_parallel.free_memory import logits_bytes
from megatron_fork.vocab_parallel.head import Coefficients, Head, Sums
from megatron_fork.vocab_parallel.overlap import lane_for
from megatron_fork.vocab_parallel.shard import (
    TokenStatistics,
    VocabularyShard,
    over_ranks,
    refuse_bad,
    statistics_of,
)
from megatron_fork.vocab_parallel.statistics import inverse_of
from megatron_fork.vocab_parallel.tile import accumulation_dtype, kernels_for
from megatron_fork.vocab_parallel.weight_gradient import WeightGradient


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
    rows_of_tile, columns = head.tile_shape(chosen.targets.numel(), logits_bytes(config, weight.device, group))
    if chunk_tokens is not None:
        rows_of_tile = max(1, chunk_tokens)
    logprob, entropy = _LmHeadStatistics.apply(
        chosen.hidden, weight, chosen.targets, head, (rows_of_tile, columns), weight_gradient
    )
    statistics = TokenStatistics(logprob, entropy)
    refuse_bad(statistics, chosen.targets, head.shard, chosen.tokens)
    return statistics


class ChosenRows:
    """Hidden states and targets of the chosen rows, and the rows' indices (None: all of them)."""

    def __init__(self, hidden: Tensor, targets: Tensor, tokens: Tensor | None, *, once: bool = False) -> None:
        self.tokens = tokens
        if tokens is None:
            self.hidden = hidden
        else:
            # Of rows that occur `once`, the gradient needs no sort and no sum.
            self.hidden = hidden.index_select(0, tokens) if once else hidden[tokens]
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
            return cls(hidden, targets, rows.nonzero()[:, 0], once=True)
        return cls(hidden, targets, rows)


def head_of(
    weight: Tensor, vocab_size: int | None, group: Group, temperature: float, config: VocabParallelConfig
) -> Head:
    shard = VocabularyShard.of(weight.shape[0], vocab_size, group)
    on_gpu = weight.is_cuda
    widens = config.fp32_head or not on_gpu
    return Head(
        weight.detach()[: shard.columns],
        shard,
        inverse_of(temperature),
        kernels_for(config.kernels, weight),
        on_gpu,
        accumulation_dtype(weight.dtype) if widens else weight.dtype,
        lane_for(weight.device, overlap=config.second_stream),
    )


def chunks_of(tokens: int, chunk_tokens: int) -> list[slice]:
    """Chunks of nearly equal size, none larger than `chunk_tokens`."""
    count = -(-tokens // chunk_tokens)
    return [slice(tokens * index // count, tokens * (index + 1) // count) for index in range(count)]


def shard_sums(head: Head, hidden_td: Tensor, targets_t: Tensor, chunks: list[slice], columns: int) -> Tensor:
    """`[4, tokens]` over the shard's columns, with no logits beyond the head's `buffers` of one tile."""
    sums = [Sums(head, chunk.stop - chunk.start) for chunk in chunks]
    swept: list[Callable[[], object]] = []
    for tile in head.column_tiles(columns):
        weight_kd = head.operand(head.weight_vd[tile], "weight")
        for of_chunk, chunk in zip(sums, chunks, strict=True):
            if len(swept) >= head.buffers:
                swept[-head.buffers]()
            logits_ck = _tile_of_logits(head, hidden_td[chunk], weight_kd, f"logits {len(swept) % head.buffers}")
            swept.append(of_chunk.add(logits_ck, targets_t[chunk], tile))
    return torch.cat([each.total() for each in sums], 1) if sums else Sums(head, 0).total()


def _tile_of_logits(head: Head, hidden_cd: Tensor, weight_kd: Tensor, name: str) -> Tensor:
    """The logits of some tokens; the last of that name are overwritten."""
    logits_ck = head.memory(name, len(hidden_cd), len(weight_kd), head.sum_dtype)
    return head.multiply(head.operand(hidden_cd, "hidden"), weight_kd.T, logits_ck)


def recomputed_gradients(
    head: Head,
    hidden_td: Tensor,
    targets_t: Tensor,
    coefficients: Coefficients,
    d_weight: WeightGradient | None,
    *,
    chunks: list[slice],
    columns: int,
) -> Tensor:
    """d_hidden `[tokens, d]`, this rank's part of it, in the dtype of the sums; d_weight is added to `d_weight`."""
    d_hidden_td = torch.zeros(hidden_td.shape, dtype=head.sum_dtype, device=hidden_td.device)
    if d_weight is not None and not chunks:
        d_weight.zero()
    for tile in head.column_tiles(columns) if chunks else ():
        weight_kd = head.operand(head.weight_vd[tile], "weight")
        of_tile = None if d_weight is None else d_weight.tile(tile, len(chunks))
        for chunk in chunks:
            logits_ck = _tile_of_logits(head, hidden_td[chunk], weight_kd, "logits 0")
            same = head.product_dtype == head.sum_dtype
            out_ck = logits_ck
            if not same:
                out_ck = head.memory("gradient", len(logits_ck), logits_ck.shape[1], head.product_dtype)
            gradient_ck = head.gradient(logits_ck, targets_t[chunk], tile, coefficients[chunk], out_ck)
            head.add_product(d_hidden_td[chunk], gradient_ck, weight_kd)
            if of_tile is not None:
                of_tile.add(gradient_ck, head.operand(hidden_td[chunk], "hidden"))
        if of_tile is not None:
            of_tile.finish()
    return d_hidden_td


class _LmHeadStatistics(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_td: Tensor,
        weight_vd: Tensor,
        targets_t: Tensor,
        head: Head,
        tile_shape: tuple[int, int],
        weight_gradient_vd: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        tokens, columns = tile_shape
        chunks = chunks_of(hidden_td.shape[0], tokens)
        partial_4t = shard_sums(head, hidden_td, targets_t, chunks, columns)
        log_z_t, logprob_t, entropy_t = statistics_of(over_ranks(partial_4t, head.shard))
        ctx.save_for_backward(hidden_td, weight_vd, targets_t, log_z_t, entropy_t)
        ctx.head, ctx.chunks, ctx.columns, ctx.weight_gradient_vd = head, chunks, columns, weight_gradient_vd
        ctx.set_materialize_grads(False)
        head.scratch.clear()
        return logprob_t, entropy_t

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_logprob_t: Tensor | None, of_entropy_t: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_td, weight_vd, targets_t, log_z_t, entropy_t = ctx.saved_tensors
        head: Head = ctx.head
        if of_logprob_t is None:
            of_logprob_t = torch.zeros_like(log_z_t)
        d_weight = None
        if ctx.needs_input_grad[1] or ctx.weight_gradient_vd is not None:
            d_weight = WeightGradient(head, weight_vd, ctx.weight_gradient_vd)
        coefficients = Coefficients(log_z_t, entropy_t, of_logprob_t, of_entropy_t)
        d_hidden_td = recomputed_gradients(
            head, hidden_td, targets_t, coefficients, d_weight, chunks=ctx.chunks, columns=ctx.columns
        )
        head.scratch.clear()
        collectives.all_reduce_sum(d_hidden_td, head.shard.group)
        given = None if d_weight is None else d_weight.for_autograd()
        return d_hidden_td.to(hidden_td.dtype), given, None, None, None, None
