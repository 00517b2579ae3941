"""The Megatron networks (policy, critic, reference), their optimizer, and the learner that drives them over a rollout batch."""

from typing import TYPE_CHECKING

from megatron_fork import front_door

if TYPE_CHECKING:
    from megatron_fork.policy.actor import LossFunction, Policy
    from megatron_fork.policy.config import CriticConfig, OptimizerConfig, PolicyConfig
    from megatron_fork.policy.critic import Critic
    from megatron_fork.policy.learner import Learner, LearningRates, Lesson, Taught
    from megatron_fork.policy.mini_batches import split_into_mini_batches
    from megatron_fork.policy.network import Network, Update
    from megatron_fork.policy.trained_models import TrainedModels
else:
    __getattr__ = front_door.opened(__name__, __file__, former={"Config": "PolicyConfig"})

__all__ = [
    "PolicyConfig",
    "Critic",
    "CriticConfig",
    "Learner",
    "Lesson",
    "LossFunction",
    "Network",
    "TrainedModels",
    "OptimizerConfig",
    "Policy",
    "LearningRates",
    "Taught",
    "Update",
    "split_into_mini_batches",
]
