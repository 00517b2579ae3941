"""The networks of a run: the policy, and those that the objective needs besides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_fork.policy.actor import Policy
from megatron_fork.policy.critic import Critic
from megatron_fork.policy.network import Network


@dataclass(frozen=True)
class TrainedModels:
    """The policy; a critic if advantages come from one; a frozen reference if there is a KL penalty."""

    policy: Policy
    critic: Critic | None = None
    reference: Policy | None = None

    @property
    def trained(self) -> Mapping[str, Network]:
        """The networks that a checkpoint holds, by name."""
        return {"policy": self.policy} if self.critic is None else {"policy": self.policy, "critic": self.critic}
