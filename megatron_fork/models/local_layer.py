"""Megatron's spec of a layer made of the modules in `layers`, and the kernels that they run on."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.spec_utils import ModuleSpec

from megatron_fork.distributed import versions
from megatron_fork.models.attention import PackedAttention
from megatron_fork.models.attention_kernels import choose_attention
from megatron_fork.models.compute import choose_elementwise
from megatron_fork.models.config import ComputeConfig
from megatron_fork.models.layers.mlp import GatedMlp
from megatron_fork.models.layers.norm import RMSNorm
from megatron_fork.models.layers.self_attention import PackedSelfAttention


def local_kernels(compute: ComputeConfig, dtype: torch.dtype, head_width: int) -> dict[str, Any]:
    """The fields of `LayerConfig` that `compute` decides; raises `ConfigError` if this machine lacks what it asks for."""
    return {
        "attention_kernel": choose_attention(compute, dtype, head_width).kernel,
        "elementwise_kernels": choose_elementwise(compute).kernels,
    }


def local_layer(config: TransformerConfig) -> ModuleSpec:
    """A dense layer, or one with experts, whose routers and MLPs are Megatron's."""
    layer: ModuleSpec = get_gpt_layer_local_spec(
        num_experts=config.num_moe_experts,
        moe_grouped_gemm=config.moe_grouped_gemm,
        qk_layernorm=config.qk_layernorm,
        normalization=config.normalization,
    )
    parts: Any = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
    parts.self_attention.module = PackedSelfAttention
    attention: Any = parts.self_attention.submodules
    attention.core_attention = PackedAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    if config.num_moe_experts:
        # Checkpoints use Transformer Engine's names, and it fuses this norm into the projection of dense layers only.
        del parts.sharded_state_dict_keys_map["pre_mlp_layernorm."]
    else:
        versions.replace_mlp(layer, GatedMlp)
    return layer
