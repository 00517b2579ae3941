"""How a model computes on this machine's hardware; none of it changes a result beyond rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from megatron_fork.distributed.fused_kernels import unusable
from megatron_fork.errors import ConfigError
from megatron_fork.models.compute_limits import eight_bits_lack
from megatron_fork.models.config import ComputeConfig


@dataclass(frozen=True)
class Chosen:
    """The chosen layers, and the reason."""

    backend: Literal["local", "transformer_engine"]
    reason: str


def choose_backend(config: ComputeConfig, dtype: torch.dtype = torch.bfloat16) -> Chosen:
    """The layers that `config.backend` means on this machine for a model of `dtype`; raises `ConfigError` if it lacks them."""
    if config.backend == "local":
        return Chosen("local", "compute.backend=local")
    lacking = unusable()
    wants = config.backend == "transformer_engine" or config.offload_layers > 0 or config.fp8 != "none"
    if lacking and wants:
        asked = "backend=transformer_engine" if config.backend == "transformer_engine" else "offload_layers or fp8"
        raise ConfigError(
            f"compute.{asked} needs Transformer Engine: {lacking}",
            hint="docs/gpu.md says how to install it on a GPU machine; compute.backend=local does without",
        )
    if lacking:
        return Chosen("local", lacking)
    if config.fp8 != "none":
        lacking = eight_bits_lack(config.fp8_recipe, torch.cuda.get_device_capability(), torch.version.cuda or "0")
        if lacking:
            raise ConfigError(
                f"compute.fp8_recipe={config.fp8_recipe} needs {lacking}",
                hint="tensorwise and delayed run on H100 and B200; compute.fp8=none everywhere",
            )
    if dtype == torch.float32 and not wants:
        return Chosen("local", "policy.precision=fp32, and Transformer Engine's products of float32 are made in TF32")
    if dtype == torch.float32:
        return Chosen("transformer_engine", "the recipe asks for it; its products of float32 are made in TF32")
    return Chosen("transformer_engine", "a GPU and Transformer Engine are available")


def compute_fields(config: ComputeConfig, chosen: Chosen, *, scales_attention: bool) -> dict[str, Any]:
    """The fields of Megatron's TransformerConfig that `config` decides; `scales_attention`: see `RotaryPositions`."""
    fused = chosen.backend == "transformer_engine"
    fields: dict[str, Any] = {
        "use_cpu_initialization": not torch.cuda.is_available(),
        "bias_activation_fusion": fused,
        "bias_dropout_fusion": fused,
        # Over packed rows Megatron's call of the fused kernel leaves the factor out, without an error.
        "apply_rope_fusion": fused and not scales_attention,
        "masked_softmax_fusion": False,  # belongs to the unfused attention of neither backend
        # Of Megatron's own linear layers, by a kernel of apex: `fused_layers.accumulate_in_buffers` does without.
        "gradient_accumulation_fusion": False,
        "persist_layer_norm": fused,
    }
    if config.recompute == "full":
        fields |= {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": config.recompute_layers,
        }
    elif config.recompute == "selective":
        fields |= {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    if config.offload_layers:
        fields |= {"cpu_offloading": True, "cpu_offloading_num_layers": config.offload_layers}
    if config.fp8 != "none":
        fields |= {"fp8": config.fp8, "fp8_recipe": config.fp8_recipe}
    return fields
