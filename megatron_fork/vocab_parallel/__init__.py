"""Log-prob, entropy and the LM head on vocabulary shards: the only place that computes either."""

from megatron_fork.vocab_parallel.lm_head import lm_head_statistics
from megatron_fork.vocab_parallel.statistics import TokenStatistics, token_statistics

__all__ = ["TokenStatistics", "lm_head_statistics", "token_statistics"]
