"""Verifiers of model responses, and the killable worker processes that they run in."""

from megatron_fork.rewards.dispatcher import PoolCounts
from megatron_fork.rewards.extraction import stated_answer
from megatron_fork.rewards.pool import Config, RewardPool, ScoreStream
from megatron_fork.rewards.procedural import generate_tasks
from megatron_fork.rewards.reach import MAX_OPERATIONS, OPERATIONS
from megatron_fork.rewards.score import RewardError, Score
from megatron_fork.rewards.verifiers import score

__all__ = [
    "MAX_OPERATIONS",
    "OPERATIONS",
    "Config",
    "PoolCounts",
    "RewardError",
    "RewardPool",
    "Score",
    "ScoreStream",
    "generate_tasks",
    "score",
    "stated_answer",
]
