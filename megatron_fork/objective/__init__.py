"""From rewards to a loss: advantages, reward shaping, the policy loss, the correction for the engine's log-probs."""

from typing import TYPE_CHECKING

from megatron_fork import opened

if TYPE_CHECKING:
    from megatron_fork.objective.advantage import generalized_advantages, group_advantages, overlong_penalty, whiten
    from megatron_fork.objective.averaging import TokenWeights, token_weights
    from megatron_fork.objective.config import Archer, EntropyShaping, Gae, ObjectiveConfig, Overlong
    from megatron_fork.objective.correction import Mismatch, accepted_responses, rollout_mismatch
    from megatron_fork.objective.covariance import covariance_tokens
    from megatron_fork.objective.critic_loss import value_loss
    from megatron_fork.objective.loss import PolicyLoss, needs_whole_sequences, policy_loss, supervised_loss
    from megatron_fork.objective.losses.surrogate import Surrogate, clipped
    from megatron_fork.objective.losses.table import Loss, loss_named
    from megatron_fork.objective.selected_tokens import SelectedTokens
else:
    __getattr__ = opened(__name__, __file__, former={"Config": "ObjectiveConfig"})

__all__ = [
    "Archer",
    "ObjectiveConfig",
    "EntropyShaping",
    "Gae",
    "Loss",
    "Mismatch",
    "Overlong",
    "PolicyLoss",
    "SelectedTokens",
    "Surrogate",
    "TokenWeights",
    "accepted_responses",
    "clipped",
    "covariance_tokens",
    "generalized_advantages",
    "group_advantages",
    "loss_named",
    "needs_whole_sequences",
    "overlong_penalty",
    "policy_loss",
    "rollout_mismatch",
    "supervised_loss",
    "token_weights",
    "value_loss",
    "whiten",
]
