"""How the networks compute and how they are stepped."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from megatron_fork.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass
class PolicyConfig:
    """How the networks compute."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Of weights and activations; log-probs, entropies and losses are fp32 whatever it is. fp32 or bf16."""
    tokens_per_micro_batch: int = 16384
    """Token budget of a micro-batch in the update; a longer sequence gets one of its own."""
    tokens_per_statistics_batch: int = 32768
    """Token budget of a micro-batch in the statistics pass, which keeps no activations."""

    def __post_init__(self) -> None:
        for name in ("tokens_per_micro_batch", "tokens_per_statistics_batch"):
            if vars(self)[name] < 1:
                raise ConfigError(f"policy.{name}={vars(self)[name]} is not a token count", hint="try 16384")

    @property
    def dtype(self) -> torch.dtype:
        import torch

        return torch.bfloat16 if self.precision == "bf16" else torch.float32


@dataclass
class OptimizerConfig:
    """Adam with decoupled weight decay; the paper's run uses 1e-6, 10 warm-up steps, 0.1 and 1.0."""

    learning_rate: float = 1e-6
    """Peak learning rate; above 0."""
    warmup_updates: int = 10
    """Optimizer steps over which the rate rises to its peak; 0: none."""
    decay: Literal["constant", "linear"] = "constant"
    """After the warm-up: constant, or linear to 5 % of the peak at the last step."""
    weight_decay: float = 0.1
    """Decoupled from the gradient; 0 switches it off."""
    beta1: float = 0.9
    """Decay of Adam's mean of gradients, in [0, 1)."""
    beta2: float = 0.999
    """Decay of Adam's mean of squared gradients, in [0, 1)."""
    clip_gradient: float = 1.0
    """Bound of the global gradient norm; 0 switches clipping off."""
    distributed: bool = False
    """Shard optimizer state over the data-parallel ranks."""
    overlap_gradients: bool = False
    """Reduce a bucket of gradients while backward goes on."""
    overlap_parameters: bool = False
    """Gather sharded parameters while the next forward has begun; needs `distributed` and `overlap_gradients`."""
    offload: float = 0.0
    """Share of the optimizer's state that stays in host memory and is stepped there; needs a GPU."""

    def __post_init__(self) -> None:
        if not 0.0 < self.learning_rate < math.inf:
            raise ConfigError(f"learning_rate={self.learning_rate} is not positive", hint="the paper uses 1e-6")
        for name in ("beta1", "beta2"):
            if not 0.0 <= vars(self)[name] < 1.0:
                raise ConfigError(f"{name}={vars(self)[name]} is not in [0, 1)", hint="Adam's are 0.9 and 0.999")
        if not (self.warmup_updates >= 0 and self.weight_decay >= 0.0 and self.clip_gradient >= 0.0):
            raise ConfigError(
                f"warmup_updates={self.warmup_updates}, weight_decay={self.weight_decay}, "
                f"clip_gradient={self.clip_gradient}: one is negative",
                hint="0 switches each off",
            )
        if not 0.0 <= self.offload <= 1.0:
            raise ConfigError(f"offload={self.offload} is not a share", hint="0 keeps all state on the GPU, 1 none")
        if self.overlap_parameters and not (self.distributed and self.overlap_gradients):
            raise ConfigError(
                "overlap_parameters=true without distributed=true and overlap_gradients=true",
                hint="only sharded parameters are gathered; set all three",
            )

    def rate_at(self, update: int, updates: int) -> float:
        """Learning rate of update `update`, counted from 0, of `updates`; linear decay ends at 5 % of the peak."""
        warm = min(1.0, (update + 1) / max(1, self.warmup_updates))
        decayed = 1.0 - 0.95 * update / max(1, updates) if self.decay == "linear" else 1.0
        return self.learning_rate * warm * decayed


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
