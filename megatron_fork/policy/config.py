"""How the networks compute and how they are optimized."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from megatron_fork.errors import ConfigError
from megatron_fork.recipe import (
    Fraction,
    FractionBelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Settings,
    Tokens,
)

if TYPE_CHECKING:
    import torch


@dataclass
class PolicyConfig(Settings, room="policy"):
    """How the networks compute."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Of weights and activations, fp32 or bf16; log-probs, entropies and losses are always fp32."""
    tokens_per_micro_batch: Tokens = 16384
    """Token budget of a micro-batch in the update; a longer sequence gets its own micro-batch."""
    tokens_per_statistics_batch: Tokens = 32768
    """Token budget of a micro-batch in the statistics pass, which keeps no activations."""

    @property
    def dtype(self) -> torch.dtype:
        import torch

        return torch.bfloat16 if self.precision == "bf16" else torch.float32


@dataclass
class OptimizerConfig(Settings):
    """Adam with decoupled weight decay; the paper uses rate 1e-6, 10 warm-up steps, decay 0.1 and clipping at 1.0."""

    learning_rate: PositiveFloat = 1e-6
    """Peak learning rate."""
    warmup_updates: NonNegativeInt = 10
    """Optimizer steps over which the rate rises to its peak; 0: none."""
    decay: Literal["constant", "linear"] = "constant"
    """After the warm-up: constant, or linear to 5 % of the peak at the last step."""
    weight_decay: NonNegativeFloat = 0.1
    """Weight decay, decoupled from the gradient; 0 switches it off."""
    beta1: FractionBelowOne = 0.9
    """Decay of Adam's mean of gradients."""
    beta2: FractionBelowOne = 0.999
    """Decay of Adam's mean of squared gradients."""
    clip_gradient: NonNegativeFloat = 1.0
    """Bound of the global gradient norm; 0 switches clipping off."""
    distributed: bool = False
    """Shard optimizer state over the data-parallel ranks."""
    overlap_gradients: bool = False
    """Reduce a bucket of gradients while backward continues."""
    overlap_parameters: bool = False
    """Gather sharded parameters during the next forward; needs `distributed` and `overlap_gradients`."""
    offload: Fraction = 0.0
    """Fraction of the optimizer's state kept and updated in host memory, 0: none; needs a GPU, bf16 and `distributed`."""

    def check(self) -> None:
        if self.overlap_parameters and not (self.distributed and self.overlap_gradients):
            raise ConfigError(
                "overlap_parameters=true without distributed=true and overlap_gradients=true",
                hint="only sharded parameters are gathered; set all three",
            )

        if self.offload and not self.distributed:
            raise ConfigError(
                f"offload={self.offload} without distributed=true",
                hint="Megatron offloads the state of its distributed optimizer only; it works on one rank too",
            )

    def rate_at(self, update: int, updates: int) -> float:
        """Learning rate of update `update`, counted from 0, of `updates`; linear decay ends at 5 % of the peak."""
        warm = min(1.0, (update + 1) / max(1, self.warmup_updates))
        decayed = 1.0 - 0.95 * update / max(1, updates) if self.decay == "linear" else 1.0
        return self.learning_rate * warm * decayed


def check_offload(config: OptimizerConfig, dtype: torch.dtype, *, field: str = "optimizer") -> None:
    """Raise `ConfigError` if the state of a float32 model is to be offloaded; `field` is the optimizer's name in a recipe."""
    import torch

    if config.offload and dtype == torch.float32:
        raise ConfigError(
            f"{field}.offload={config.offload} with policy.precision=fp32, whose loaded weights Megatron would lose",
            hint=f"set policy.precision=bf16, or {field}.offload=0",
        )


def _critic_optimizer() -> OptimizerConfig:
    return OptimizerConfig(learning_rate=1e-5)


@dataclass
class CriticConfig(Settings, room="critic"):
    """PPO's critic, which exists if `objective.advantage=gae`."""

    warmup_steps: NonNegativeInt = 0
    """Steps at the start in which only the critic learns, since its first values mean nothing."""
    epochs: PositiveInt = 1
    """Passes over a rollout batch for the critic; the policy makes one."""
    optimizer: OptimizerConfig = field(default_factory=_critic_optimizer)
