"""Which offload of activations and which products in 8 bits a model, a layout or a GPU cannot have."""

from __future__ import annotations

import torch
from transformers import PretrainedConfig

from megatron_fork import distributed
from megatron_fork.errors import ConfigError
from megatron_fork.models.architecture import head_size
from megatron_fork.models.config import ComputeConfig
from megatron_fork.models.families import family_of

# By `compute.fp8_recipe`: the tokens and widths of a product in 8 bits are multiples of it.
MULTIPLES = {"delayed": 16, "tensorwise": 16, "blockwise": 16, "mxfp8": 32}


def check_fused(
    hf_config: PretrainedConfig, parallel: distributed.ParallelConfig, compute: ComputeConfig, dtype: torch.dtype
) -> None:
    """Raise `ConfigError` for offloaded activations or products in 8 bits that this model or layout cannot have."""
    layers = hf_config.num_hidden_layers
    if compute.offload_layers and parallel.pipeline > 1:
        raise ConfigError(
            f"compute.offload_layers={compute.offload_layers} with parallel.pipeline={parallel.pipeline}",
            hint="Megatron offloads activations without pipeline stages only: set compute.recompute=full",
        )
    if compute.offload_layers >= layers:
        raise ConfigError(
            f"compute.offload_layers={compute.offload_layers}, but the model has {layers} layers",
            hint=f"the last layer's activations are wanted at once: at most {layers - 1}",
        )
    if compute.fp8 == "none":
        return
    if dtype != torch.bfloat16:
        raise ConfigError(
            f"compute.fp8={compute.fp8} with policy.precision=fp32",
            hint="set policy.precision=bf16, or compute.fp8=none",
        )
    multiple = MULTIPLES[compute.fp8_recipe]
    for name, width in _widths(hf_config, parallel).items():
        if width % multiple:
            raise ConfigError(
                f"compute.fp8_recipe={compute.fp8_recipe} needs widths that are multiples of {multiple}: {name} is {width}",
                hint="set compute.fp8=none, or shard the model less (parallel.tensor)",
            )


def _widths(config: PretrainedConfig, parallel: distributed.ParallelConfig) -> dict[str, int]:
    """Columns of the products of a layer on one rank."""
    head, tensor = head_size(config), parallel.tensor
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    widths = {
        "hidden_size": config.hidden_size,
        "the width of queries, keys and values": heads * head // tensor,
        "the width of heads": config.num_attention_heads * head // tensor,
    }
    if family_of(config).has_experts:
        return widths | {"moe_intermediate_size": config.moe_intermediate_size // parallel.expert_tensor}
    return widths | {"intermediate_size": config.intermediate_size // tensor}


def eight_bits_lack(recipe: str, capability: tuple[int, int], cuda: str) -> str:
    """What a GPU of this compute capability, or its CUDA version, lacks for a recipe of 8 bits; empty if nothing."""
    found = f"this GPU has {capability[0]}.{capability[1]}"
    if recipe == "mxfp8":
        if capability[0] not in (10, 11):
            return f"compute capability 10.0 (B200): {found}"
    elif recipe == "blockwise":
        if capability < (9, 0):
            return f"compute capability 9.0 (H100): {found}"
        if tuple(map(int, cuda.split(".")[:2])) < (12, 9):
            return f"CUDA 12.9: torch is built for {cuda}"
    elif capability < (8, 9):
        return f"compute capability 8.9 (L40S, H100): {found}"
    return ""
