"""The Megatron actor: build, statistics pass, update, optimizer; and the learner that drives them over a rollout batch."""

from megatron_fork.policy.actor import LossFunction, Policy
from megatron_fork.policy.critic import Critic
from megatron_fork.policy.learner import Learner, Lesson, split_into_mini_batches
from megatron_fork.policy.network import Config, Network, Update
from megatron_fork.policy.optimizer import OptimizerConfig

__all__ = [
    "Config",
    "Critic",
    "Learner",
    "Lesson",
    "LossFunction",
    "Network",
    "OptimizerConfig",
    "Policy",
    "Update",
    "split_into_mini_batches",
]
