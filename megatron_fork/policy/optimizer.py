"""Megatron's Adam and the learning rate of an update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from torch import nn

from megatron_fork.errors import ConfigError


@dataclass
class OptimizerConfig:
    """Adam with decoupled weight decay; the paper's run uses 1e-6, 10 warm-up steps, 0.1 and 1.0."""

    learning_rate: float = 1e-6
    warmup_updates: int = 10
    decay: Literal["constant", "linear"] = "constant"
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.999
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


def build_optimizer(config: OptimizerConfig, chunks: Sequence[nn.Module], dtype: torch.dtype) -> MegatronOptimizer:
    """Megatron's optimizer over the wrapped chunks; main parameters are float32 whatever the model's dtype."""
    if config.offload and not torch.cuda.is_available():
        raise ConfigError(f"offload={config.offload} without a GPU", hint="there is no device memory to spare: set 0")
    return get_megatron_optimizer(
        MegatronOptimizerConfig(
            optimizer="adam",
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            adam_beta1=config.beta1,
            adam_beta2=config.beta2,
            clip_grad=config.clip_gradient,
            bf16=dtype == torch.bfloat16,
            params_dtype=dtype,
            use_distributed_optimizer=config.distributed,
            overlap_param_gather=config.overlap_parameters,
            optimizer_cpu_offload=config.offload > 0,
            optimizer_offload_fraction=config.offload,
        ),
        list(chunks),
    )
