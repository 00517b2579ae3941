"""From a Hugging Face config to Megatron's: one declarative table per model family.

Qwen3: RMSNorm before attention and MLP, RMSNorm on query and key heads, grouped-query attention, SwiGLU, rotary positions,
no biases (arXiv 2505.09388).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PretrainedConfig

from megatron_fork.distributed import layout
from megatron_fork.errors import LayoutError, ModelError


@dataclass(frozen=True)
class Family:
    """What distinguishes one family: fields carried over by name, and fixed settings of the architecture."""

    carried: dict[str, str]
    fixed: dict[str, Any] = field(default_factory=dict)


_DENSE_FIELDS = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_query_groups",
    "head_dim": "kv_channels",
    "rms_norm_eps": "layernorm_epsilon",
    "initializer_range": "init_method_std",
}
_LLAMA_LIKE = {
    "normalization": "RMSNorm",
    "gated_linear_unit": True,
    "activation_func": torch.nn.functional.silu,
    "add_bias_linear": False,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "attention_softmax_in_fp32": True,
}

FAMILIES = {"Qwen3ForCausalLM": Family(_DENSE_FIELDS, {**_LLAMA_LIKE, "qk_layernorm": True})}


def check_architecture(architecture: str) -> None:
    """Raise `ModelError`, naming those that are known, for an architecture without a table entry."""
    if architecture not in FAMILIES:
        raise ModelError(
            f"model architecture {architecture} is not known", hint=f"supported: {', '.join(sorted(FAMILIES))}"
        )


def family_of(config: PretrainedConfig) -> Family:
    """The table entry for a config's architecture; raises `ModelError` where there is none."""
    architecture = (config.architectures or ["none"])[0]
    check_architecture(architecture)
    if getattr(config, "attention_bias", False):
        raise ModelError(
            f"model config attention_bias=true is not supported for {architecture}", hint="use a model without biases"
        )
    if getattr(config, "use_sliding_window", False):
        raise ModelError(
            f"model config use_sliding_window=true is not supported for {architecture}",
            hint="use a model of full attention",
        )
    if config.hidden_act != "silu":
        raise ModelError(
            f"model config hidden_act={config.hidden_act} is not supported for {architecture}",
            hint="use a model with silu",
        )
    return FAMILIES[architecture]


def rotary_base(config: PretrainedConfig) -> float:
    """The base period of the rotary positions; scaled variants are refused by name."""
    parameters = config.rope_parameters or {}
    kind = parameters.get("rope_type", "default")
    if kind != "default":
        raise ModelError(
            f"model config rope_type={kind} is not supported", hint="use a model with default rotary positions"
        )
    return float(parameters["rope_theta"])


def check_divides(config: PretrainedConfig, parallel: layout.Config) -> None:
    """Raise `LayoutError` when heads, widths or layers do not split over the ranks, before anything is allocated."""
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "hidden_size"):
        if getattr(config, name) % parallel.tensor:
            raise LayoutError(
                f"parallel.tensor={parallel.tensor} does not divide the model's {name}={getattr(config, name)}",
                hint="choose a tensor-parallel size that divides heads, key-value heads and widths",
            )
    if config.num_hidden_layers % parallel.pipeline:
        raise LayoutError(
            f"parallel.pipeline={parallel.pipeline} does not divide the model's num_hidden_layers="
            f"{config.num_hidden_layers}",
            hint="choose a pipeline-parallel size that divides the layers",
        )


def padded_vocab_size(config: PretrainedConfig, parallel: layout.Config) -> int:
    """The vocabulary rounded up so that every tensor rank holds as many rows."""
    return -(-config.vocab_size // parallel.tensor) * parallel.tensor
