"""Verifiers of model responses, and the killable worker processes that they run in."""

from typing import TYPE_CHECKING

from megatron_fork import opened
from megatron_fork.rewards.failures import Failures, FailureWatch
from megatron_fork.rewards.pool import RewardPool, ScoreStream, check_verifier
from megatron_fork.rewards.procedural import generate_tasks
from megatron_fork.rewards.reach import MAX_OPERATIONS, OPERATIONS
from megatron_fork.rewards.reference import Reference, read_reference
from megatron_fork.rewards.score import RewardError, Score
from megatron_fork.rewards.stated import answer_in, compares_answers, number_in, states_answers
from megatron_fork.rewards.verifiers import score, takes_row

# Workers start without importing what checks settings.
if TYPE_CHECKING:
    from megatron_fork.rewards.config import RewardsConfig
else:
    __getattr__ = opened(__name__, __file__, former={"Config": "RewardsConfig"})

__all__ = [
    "MAX_OPERATIONS",
    "OPERATIONS",
    "RewardsConfig",
    "FailureWatch",
    "Failures",
    "Reference",
    "RewardError",
    "RewardPool",
    "Score",
    "ScoreStream",
    "answer_in",
    "check_verifier",
    "compares_answers",
    "generate_tasks",
    "number_in",
    "read_reference",
    "score",
    "states_answers",
    "takes_row",
]
