"""The Megatron networks (policy, critic, reference), their optimizer, and the learner that drives them over a rollout batch."""

from megatron_fork.policy.actor import LossFunction, Policy
from megatron_fork.policy.critic import Critic
from megatron_fork.policy.learner import Learner, Lesson, Rates, Taught
from megatron_fork.policy.mini_batches import split_into_mini_batches
from megatron_fork.policy.network import Config, Network, Update
from megatron_fork.policy.networks import CriticConfig, Networks
from megatron_fork.policy.optimizer import OptimizerConfig

__all__ = [
    "Config",
    "Critic",
    "CriticConfig",
    "Learner",
    "Lesson",
    "LossFunction",
    "Network",
    "Networks",
    "OptimizerConfig",
    "Policy",
    "Rates",
    "Taught",
    "Update",
    "split_into_mini_batches",
]
