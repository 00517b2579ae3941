"""Log-prob and entropy of every token from a rank's shard of the logits.

Cost: one read of the logits forward, one read and one write backward, one collective of four floats a token. For backward
the logits themselves and two floats a token (log Z, entropy) are kept; no softmax is ever stored. Tokens are taken in
blocks that stay in cache, so that the float32 copy of bf16 logits is one block, never the whole.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_fork.distributed.collectives import Group
from megatron_fork.vocab_parallel.shard import VocabularyShard, logits_gradient, merge, sweep

_BLOCK_BYTES = 1 << 20


class TokenStatistics(NamedTuple):
    """Log-prob of the target and entropy of the distribution, in nats, float32, one value a token."""

    logprob: Tensor
    entropy: Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Float64 stays (gradient checks); everything else is computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def token_statistics(
    logits: Tensor,
    targets: Tensor,
    *,
    group: Group = None,
    temperature: float = 1.0,
    vocab_size: int | None = None,
) -> TokenStatistics:
    """Log-prob of `targets` and entropy under `softmax(logits / temperature)` (arXiv 2506.01939, Eq. 1).

    Args:
        logits: `[..., vocab/tp]`, any float dtype: this rank's columns. Never modified.
        targets: `[...]` int64, global vocabulary ids.
        group: ranks that share the vocabulary, in the order of their columns; None for one rank.
        temperature: the rollout's decoding temperature.
        vocab_size: true vocabulary size; columns at or past it are padding and do not exist.

    Returns:
        `TokenStatistics` of float32 `[...]` in nats (float64 for float64 logits), differentiable in both.

    """
    shape = targets.shape
    logprob, entropy = _TokenStatistics.apply(
        logits.reshape(-1, logits.shape[-1]),
        targets.reshape(-1),
        VocabularyShard.of(logits.shape[-1], vocab_size, group),
        temperature,
    )
    return TokenStatistics(logprob.view(shape), entropy.view(shape))


def _blocks(logits_tv: Tensor) -> range:
    tokens = max(1, _BLOCK_BYTES // (4 * max(1, logits_tv.shape[1])))
    return range(0, logits_tv.shape[0], tokens)


class _TokenStatistics(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_tv: Tensor, targets_t: Tensor, shard: VocabularyShard, temperature: float
    ) -> tuple[Tensor, Tensor]:
        dtype = accumulation_dtype(logits_tv.dtype)
        column_t, held_t = shard.locate(targets_t)
        partial_4t = torch.empty(4, targets_t.numel(), dtype=dtype, device=logits_tv.device)
        blocks = _blocks(logits_tv)
        for start in blocks:
            block = slice(start, start + blocks.step)
            scaled_tv = logits_tv[block, : shard.columns].to(dtype, copy=True).div_(temperature)
            partial_4t[:, block] = sweep(scaled_tv, column_t[block], held_t[block])
        log_z_t, logprob_t, entropy_t = merge(partial_4t, shard.group)
        ctx.save_for_backward(logits_tv, targets_t, log_z_t, entropy_t)
        ctx.shard, ctx.temperature = shard, temperature
        ctx.set_materialize_grads(False)
        return logprob_t, entropy_t

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, logprob_gradient_t: Tensor | None, entropy_gradient_t: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if logprob_gradient_t is None and entropy_gradient_t is None:
            return None, None, None, None
        logits_tv, targets_t, log_z_t, entropy_t = ctx.saved_tensors
        shard: VocabularyShard = ctx.shard
        if logprob_gradient_t is None:
            logprob_gradient_t = torch.zeros_like(log_z_t)
        column_t, held_t = shard.locate(targets_t)
        gradient_tv = torch.zeros_like(logits_tv)
        blocks = _blocks(logits_tv)
        for start in blocks:
            block = slice(start, start + blocks.step)
            scaled_tv = logits_tv[block, : shard.columns].to(log_z_t.dtype, copy=True).div_(ctx.temperature)
            gradient_tv[block, : shard.columns] = logits_gradient(
                scaled_tv,
                column_t[block],
                held_t[block],
                log_z_t[block],
                entropy_t[block],
                logprob_gradient_t[block],
                None if entropy_gradient_t is None else entropy_gradient_t[block],
            ).div_(ctx.temperature)
        return gradient_tv, None, None, None
