"""Transformer Engine's layers: their spec, what they ask of a packed row, and where their gradients go.

Norms are fused into the projections, attention runs over packed and context-parallel rows, and rotary positions are one kernel.
Products of float32 operands are made in TF32, which keeps 10 bits of each; no fast kernel of its attention takes float32, so
that with `policy.precision=fp32` this project's attention stands in its place.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.spec_utils import ModuleSpec
from torch import nn

from megatron_fork.models.attention import PackedAttention
from megatron_fork.models.compute_limits import MULTIPLES


def fused_layer(config: TransformerConfig) -> ModuleSpec:
    """The spec of one layer."""
    layer: ModuleSpec = get_gpt_layer_with_transformer_engine_spec(
        num_experts=config.num_moe_experts,
        moe_grouped_gemm=config.moe_grouped_gemm,
        qk_layernorm=config.qk_layernorm,
    )
    if config.params_dtype == torch.float32:
        parts: Any = layer.submodules
        parts.self_attention.submodules.core_attention = PackedAttention
    return layer


def accumulate_in_buffers(model: nn.Module) -> None:
    """Have Transformer Engine's products add weight gradients to Megatron's buffers, which the model must have by now.

    Megatron's own option for it is one for all layers, its output layer among them, and wants apex for that one. The LM head
    here has a product of its own, which does the same.
    """
    for module in model.modules():
        if "fuse_wgrad_accumulation" in vars(module):
            vars(module)["fuse_wgrad_accumulation"] = True


def tokens_multiple(config: TransformerConfig) -> int:
    """What the tokens of every rank must be a multiple of: 1, or more where products are in 8 bits."""
    return MULTIPLES[str(config.fp8_recipe)] if config.fp8 else 1
