"""Megatron's Adam optimizer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from torch import nn

from megatron_fork.errors import ConfigError
from megatron_fork.policy.config import OptimizerConfig


def build_optimizer(config: OptimizerConfig, chunks: Sequence[nn.Module], dtype: torch.dtype) -> MegatronOptimizer:
    """Megatron's optimizer over the wrapped chunks; main parameters are float32 for any dtype of the model."""
    if config.offload and not torch.cuda.is_available():
        raise ConfigError(f"offload={config.offload} needs a GPU", hint="there is no device memory to save: set 0")
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
