"""The networks of a run: the policy, and what the objective needs beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from megatron_fork.errors import ConfigError
from megatron_fork.policy.actor import Policy
from megatron_fork.policy.critic import Critic
from megatron_fork.policy.network import Network
from megatron_fork.policy.optimizer import OptimizerConfig


def _critic_optimizer() -> OptimizerConfig:
    return OptimizerConfig(learning_rate=1e-5)


@dataclass
class CriticConfig:
    """PPO's critic, which exists where `objective.advantage=gae`."""

    warmup_steps: int = 0
    """Steps at the start in which only the critic learns: until then its values are of a network that knows nothing."""
    epochs: int = 1
    """Passes over a rollout batch for the critic; the policy makes one."""
    optimizer: OptimizerConfig = field(default_factory=_critic_optimizer)

    def __post_init__(self) -> None:
        if self.warmup_steps < 0 or self.epochs < 1:
            raise ConfigError(
                f"critic.warmup_steps={self.warmup_steps}, critic.epochs={self.epochs}: not counts",
                hint="warmup_steps=0 trains both from the start; epochs is 1 or more",
            )


@dataclass(frozen=True)
class Networks:
    """The policy; a critic where advantages come from one; a frozen reference where a KL penalty needs one."""

    policy: Policy
    critic: Critic | None = None
    reference: Policy | None = None

    @property
    def trained(self) -> Mapping[str, Network]:
        """What a checkpoint holds, by name."""
        return {"policy": self.policy} if self.critic is None else {"policy": self.policy, "critic": self.critic}
