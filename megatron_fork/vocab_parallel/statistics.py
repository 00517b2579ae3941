"""Log-prob and entropy of every token from a rank's shard of the logits.

Cost: one read of the logits forward, one read and one write backward, one collective of four floats per token. For backward
the logits themselves and two floats per token (log Z, entropy) are kept; no softmax is ever stored.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_fork.distributed.collectives import Group
from megatron_fork.errors import StatisticsError
from megatron_fork.vocab_parallel.config import KernelChoice
from megatron_fork.vocab_parallel.shard import (
    TokenStatistics,
    VocabularyShard,
    over_ranks,
    refuse_bad,
    statistics_of,
)
from megatron_fork.vocab_parallel.tile import TileKernels, kernels_for


def token_statistics(
    logits: Tensor,
    targets: Tensor,
    *,
    group: Group = None,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    kernels: KernelChoice = "auto",
) -> TokenStatistics:
    """Log-prob of `targets` and entropy under `softmax(logits / temperature)` (arXiv 2506.01939, Eq. 1).

    Args:
        logits: `[..., vocab/tp]`, any float dtype, any strides: this rank's columns. Never modified.
        targets: `[...]` int64, global vocabulary ids.
        group: ranks that share the vocabulary, in the order of their columns; None for one rank.
        temperature: the rollout's decoding temperature.
        vocab_size: true vocabulary size; columns at or past it are padding and do not exist.
        kernels: see `VocabParallelConfig`.

    Returns:
        `TokenStatistics` of float32 `[...]` in nats (float64 for float64 logits), differentiable in both.

    Raises:
        StatisticsError: a target is not a token or the logits have no softmax, with the token; shapes do not match.

    """
    if logits.shape[:-1] != targets.shape:
        raise StatisticsError(
            f"logits has shape {list(logits.shape)}, targets {list(targets.shape)}", hint="give one target per token"
        )
    inverse_temperature = inverse_of(temperature)
    shard = VocabularyShard.of(logits.shape[-1], vocab_size, group)
    flat_t = targets.reshape(-1)
    logprob, entropy = _TokenStatistics.apply(
        logits.reshape(-1, logits.shape[-1]), flat_t, shard, inverse_temperature, kernels_for(kernels, logits)
    )
    refuse_bad(TokenStatistics(logprob, entropy), flat_t, shard, None)
    return TokenStatistics(logprob.view(targets.shape), entropy.view(targets.shape))


def inverse_of(temperature: float) -> float:
    if not temperature > 0.0:
        raise StatisticsError(f"temperature={temperature} is not positive", hint="greedy decoding has no log-prob")
    return 1.0 / temperature


class _TokenStatistics(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_tv: Tensor,
        targets_t: Tensor,
        shard: VocabularyShard,
        inverse_temperature: float,
        kernels: TileKernels,
    ) -> tuple[Tensor, Tensor]:
        column_t, held_t = shard.locate(targets_t)
        partial_4t = kernels.sweep(logits_tv[:, : shard.columns], column_t, held_t, inverse_temperature)
        log_z_t, logprob_t, entropy_t = statistics_of(over_ranks(partial_4t, shard))
        ctx.save_for_backward(logits_tv, targets_t, log_z_t, entropy_t)
        ctx.shard, ctx.inverse_temperature, ctx.kernels = shard, inverse_temperature, kernels
        ctx.set_materialize_grads(False)
        return logprob_t, entropy_t

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, logprob_gradient_t: Tensor | None, entropy_gradient_t: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if logprob_gradient_t is None and entropy_gradient_t is None:
            return None, None, None, None, None
        logits_tv, targets_t, log_z_t, entropy_t = ctx.saved_tensors
        shard: VocabularyShard = ctx.shard
        gradient_tv = torch.empty_like(logits_tv, memory_format=torch.contiguous_format)
        gradient_tv[:, shard.columns :] = 0.0
        ctx.kernels.logits_gradient(
            logits_tv[:, : shard.columns],
            *shard.locate(targets_t),
            log_z_t,
            entropy_t,
            torch.zeros_like(log_z_t) if logprob_gradient_t is None else logprob_gradient_t,
            entropy_gradient_t,
            ctx.inverse_temperature,
            gradient_tv[:, : shard.columns],
        )
        return gradient_tv, None, None, None, None
