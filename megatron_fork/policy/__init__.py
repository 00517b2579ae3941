"""The Megatron networks (policy, critic, reference), their optimizer, and the learner that trains them on a rollout batch."""

from typing import TYPE_CHECKING

from megatron_fork import opened

if TYPE_CHECKING:
    from megatron_fork.policy.actor import LossFunction, Policy
    from megatron_fork.policy.config import CriticConfig, OptimizerConfig, PolicyConfig, check_offload
    from megatron_fork.policy.critic import Critic
    from megatron_fork.policy.learner import TIE_TOLERANCE, Learner
    from megatron_fork.policy.network import Network, Update
    from megatron_fork.policy.skipped_updates import SkippedUpdates
    from megatron_fork.policy.step_batches import groups_with_signal, split_into_mini_batches, with_advantages
    from megatron_fork.policy.step_result import LearningRates, StepResult
    from megatron_fork.policy.trained_models import TrainedModels
else:
    __getattr__ = opened(__name__, __file__, former={"Config": "PolicyConfig"})

__all__ = [
    "TIE_TOLERANCE",
    "PolicyConfig",
    "Critic",
    "CriticConfig",
    "Learner",
    "LossFunction",
    "Network",
    "TrainedModels",
    "OptimizerConfig",
    "Policy",
    "LearningRates",
    "SkippedUpdates",
    "StepResult",
    "Update",
    "check_offload",
    "groups_with_signal",
    "split_into_mini_batches",
    "with_advantages",
]
