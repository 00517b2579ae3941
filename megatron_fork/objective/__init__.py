"""From rewards to a loss: advantages, reward shaping, the policy loss, the correction for the engine's log-probs."""

from megatron_fork.objective.advantage import group_advantages, overlong_penalty
from megatron_fork.objective.config import Config, Overlong
from megatron_fork.objective.loss import PolicyLoss, policy_loss, supervised_loss

__all__ = [
    "Config",
    "Overlong",
    "PolicyLoss",
    "group_advantages",
    "overlong_penalty",
    "policy_loss",
    "supervised_loss",
]
