"""The networks of a run: the policy, and what the objective needs beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_fork.policy.actor import Policy
from megatron_fork.policy.critic import Critic
from megatron_fork.policy.network import Network


@dataclass(frozen=True)
class TrainedModels:
    """The policy; a critic where advantages come from one; a frozen reference where a KL penalty needs one."""

    policy: Policy
    critic: Critic | None = None
    reference: Policy | None = None

    @property
    def trained(self) -> Mapping[str, Network]:
        """What a checkpoint holds, by name."""
        return {"policy": self.policy} if self.critic is None else {"policy": self.policy, "critic": self.critic}
