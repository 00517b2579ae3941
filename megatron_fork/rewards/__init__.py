"""Verifiers of model responses, and the killable worker processes that they run in."""

from megatron_fork.rewards.pool import Config, RewardPool
from megatron_fork.rewards.reach import MAX_OPERATIONS, OPERATIONS
from megatron_fork.rewards.score import RewardError, Score
from megatron_fork.rewards.verifiers import score

__all__ = ["MAX_OPERATIONS", "OPERATIONS", "Config", "RewardError", "RewardPool", "Score", "score"]
