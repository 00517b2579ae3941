"""The Megatron actor: build, statistics pass, update, optimizer; and the learner that drives them over a rollout batch."""

from megatron_fork.policy.actor import Config, LossFunction, Policy, Update
from megatron_fork.policy.learner import Learner, Lesson, split_into_mini_batches
from megatron_fork.policy.optimizer import OptimizerConfig

__all__ = [
    "Config",
    "Learner",
    "Lesson",
    "LossFunction",
    "OptimizerConfig",
    "Policy",
    "Update",
    "split_into_mini_batches",
]
