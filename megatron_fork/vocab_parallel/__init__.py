"""Log-prob, entropy and the LM head on vocabulary shards; no other room computes these."""

from typing import TYPE_CHECKING

from megatron_fork import opened

if TYPE_CHECKING:
    from megatron_fork.vocab_parallel.config import VocabParallelConfig
    from megatron_fork.vocab_parallel.free_memory import logits_bytes
    from megatron_fork.vocab_parallel.fused_loss import RowLoss, lm_head_loss
    from megatron_fork.vocab_parallel.lm_head import lm_head_statistics
    from megatron_fork.vocab_parallel.shard import TokenStatistics
    from megatron_fork.vocab_parallel.statistics import token_statistics
    from megatron_fork.vocab_parallel.truncation import (
        KeptSets,
        ReplayedStatistics,
        replayed_statistics,
        truncated_statistics,
    )
else:
    __getattr__ = opened(__name__, __file__, former={"Config": "VocabParallelConfig"})

__all__ = [
    "VocabParallelConfig",
    "KeptSets",
    "ReplayedStatistics",
    "RowLoss",
    "TokenStatistics",
    "lm_head_loss",
    "lm_head_statistics",
    "logits_bytes",
    "replayed_statistics",
    "token_statistics",
    "truncated_statistics",
]
