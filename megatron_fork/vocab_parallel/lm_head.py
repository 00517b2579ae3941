"""Log-prob and entropy straight from hidden states: the LM head on selected rows only.

Logits exist one chunk of tokens at a time, forward and backward (they are recomputed: one more matrix product in exchange
for memory that does not grow with tokens). Kept for backward: the selected hidden states, the weight, two floats a token.
Rows that are not asked for cost nothing. Forward: one collective of four floats a token for all chunks together. Backward:
one all-reduce of the selected rows' d_hidden, which is a partial sum over each rank's columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_fork.distributed import collectives
from megatron_fork.distributed.collectives import Group
from megatron_fork.vocab_parallel.shard import VocabularyShard, logits_gradient, merge, sweep
from megatron_fork.vocab_parallel.statistics import TokenStatistics, accumulation_dtype

_CHUNK_BYTES = 32 << 20


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
) -> TokenStatistics:
    """Statistics of `softmax(hidden @ weight.T / temperature)` at the chosen rows.

    Args:
        hidden: `[tokens, d]`, the same on every rank of `group`.
        weight: `[vocab/tp, d]`, this rank's rows of the LM head.
        targets: `[tokens]` int64, global vocabulary ids.
        rows: bool `[tokens]` or int64 indices of the tokens to compute; None for all. None chosen is legal.
        group: ranks that share the vocabulary; None for one rank.
        temperature: the rollout's decoding temperature.
        vocab_size: true vocabulary size; rows of `weight` at or past it (globally) are padding.
        chunk_tokens: tokens whose logits live at a time; by default as many as fit 32 MiB.

    Returns:
        `TokenStatistics` of float32 `[len(rows)]` in row order, in nats, differentiable in `hidden` and `weight`; the
        gradient of `hidden` is accumulated in float32 and summed over `group`.

    """
    if rows is not None:
        hidden, targets = hidden[rows], targets[rows]
    shard = VocabularyShard.of(weight.shape[0], vocab_size, group)
    if chunk_tokens is None:
        chunk_tokens = max(16, _CHUNK_BYTES // (4 * weight.shape[0]))
    logprob, entropy = _LmHeadStatistics.apply(hidden, weight, targets, shard, temperature, chunk_tokens)
    return TokenStatistics(logprob, entropy)


def _scaled_logits(hidden_td: Tensor, weight_vd: Tensor, temperature: float) -> Tensor:
    logits_tv = (hidden_td @ weight_vd.T).to(accumulation_dtype(hidden_td.dtype))
    return logits_tv if temperature == 1.0 else logits_tv.div_(temperature)


class _LmHeadStatistics(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_td: Tensor,
        weight_vd: Tensor,
        targets_t: Tensor,
        shard: VocabularyShard,
        temperature: float,
        chunk_tokens: int,
    ) -> tuple[Tensor, Tensor]:
        tokens = hidden_td.shape[0]
        column_t, held_t = shard.locate(targets_t)
        partial_4t = torch.empty(4, tokens, dtype=accumulation_dtype(hidden_td.dtype), device=hidden_td.device)
        for start in range(0, tokens, chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            scaled_tv = _scaled_logits(hidden_td[chunk], weight_vd[: shard.columns], temperature)
            partial_4t[:, chunk] = sweep(scaled_tv, column_t[chunk], held_t[chunk])
        log_z_t, logprob_t, entropy_t = merge(partial_4t, shard.group)
        ctx.save_for_backward(hidden_td, weight_vd, targets_t, log_z_t, entropy_t)
        ctx.shard, ctx.temperature, ctx.chunk_tokens = shard, temperature, chunk_tokens
        ctx.set_materialize_grads(False)
        return logprob_t, entropy_t

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, logprob_gradient_t: Tensor | None, entropy_gradient_t: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden_td, weight_vd, targets_t, log_z_t, entropy_t = ctx.saved_tensors
        shard: VocabularyShard = ctx.shard
        if logprob_gradient_t is None:
            logprob_gradient_t = torch.zeros_like(log_z_t)
        column_t, held_t = shard.locate(targets_t)
        dtype = log_z_t.dtype
        hidden_gradient_td = torch.zeros(hidden_td.shape, dtype=dtype, device=hidden_td.device)
        weight_gradient_vd = torch.zeros(weight_vd.shape, dtype=dtype, device=weight_vd.device)
        held_vd = weight_vd[: shard.columns]
        for start in range(0, hidden_td.shape[0], ctx.chunk_tokens):
            chunk = slice(start, start + ctx.chunk_tokens)
            logits_gradient_tv = logits_gradient(
                _scaled_logits(hidden_td[chunk], held_vd, ctx.temperature),
                column_t[chunk],
                held_t[chunk],
                log_z_t[chunk],
                entropy_t[chunk],
                logprob_gradient_t[chunk],
                None if entropy_gradient_t is None else entropy_gradient_t[chunk],
            )
            if ctx.temperature != 1.0:
                logits_gradient_tv.div_(ctx.temperature)
            # Products in the model's dtype, sums over chunks in float32.
            logits_gradient_tv = logits_gradient_tv.to(hidden_td.dtype)
            hidden_gradient_td[chunk] = logits_gradient_tv @ held_vd
            weight_gradient_vd[: shard.columns] += logits_gradient_tv.T @ hidden_td[chunk]
        collectives.all_reduce_sum(hidden_gradient_td, shard.group)
        return (
            hidden_gradient_td.to(hidden_td.dtype),
            weight_gradient_vd.to(weight_vd.dtype),
            None,
            None,
            None,
            None,
        )
