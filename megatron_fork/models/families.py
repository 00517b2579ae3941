"""From a Hugging Face config to Megatron's: one declarative table per model family.

All families: RMSNorm before attention and MLP, grouped-query attention, SwiGLU, rotary positions. What they differ in:

* Llama 3 (arXiv 2407.21783): nothing more; rotary positions may be scaled.
* Qwen2 and Qwen2.5 (arXiv 2407.10671, 2412.15115): biases on query, key and value.
* Qwen3 (arXiv 2505.09388): no biases, RMSNorm on query and key heads.
* Qwen3-MoE: Qwen3 with a mixture of experts in place of every MLP.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from megatron_fork import distributed
from megatron_fork.errors import LayoutError, ModelError
from megatron_fork.models.experts import EXPERT_FIELDS, check_experts_divide, check_no_experts, router_settings
from megatron_fork.models.fields import check_fields, check_together, shown
from megatron_fork.models.rotary import rotary_positions


@dataclass(frozen=True)
class Family:
    """What distinguishes one family: settings of the architecture, and the config fields that decide about support."""

    fixed: dict[str, Any] = field(default_factory=dict)
    """Settings of Megatron beyond `_COMMON`."""
    required: dict[str, tuple[Any, str]] = field(default_factory=dict)
    """Fields of the Hugging Face config: the one supported value, and what to do about another."""
    has_experts: bool = False


_CARRIED = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_query_groups",
    "rms_norm_eps": "layernorm_epsilon",
    "initializer_range": "init_method_std",
}
_COMMON = {
    "normalization": "RMSNorm",
    "gated_linear_unit": True,
    "activation_func": torch.nn.functional.silu,
    "add_bias_linear": False,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "attention_softmax_in_fp32": True,
}
_SILU = {"hidden_act": ("silu", "use a model with silu")}
_NO_BIAS = {"attention_bias": (False, "use a model without biases")}
_FULL_ATTENTION = {"use_sliding_window": (False, "use a model of full attention")}
_EXPERTS_IN_EVERY_LAYER = {
    "decoder_sparse_step": (1, "use a model with experts in every layer"),
    "mlp_only_layers": ([], "use a model with experts in every layer"),
}

FAMILIES = {
    "LlamaForCausalLM": Family(
        required={**_SILU, **_NO_BIAS, "mlp_bias": (False, "use a model without biases")},
    ),
    "Qwen2ForCausalLM": Family({"add_qkv_bias": True}, {**_SILU, **_FULL_ATTENTION}),
    "Qwen3ForCausalLM": Family({"qk_layernorm": True}, {**_SILU, **_NO_BIAS, **_FULL_ATTENTION}),
    "Qwen3MoeForCausalLM": Family(
        {"qk_layernorm": True},
        {**_SILU, **_NO_BIAS, **_FULL_ATTENTION, **_EXPERTS_IN_EVERY_LAYER},
        has_experts=True,
    ),
}


def check_architecture(architecture: str) -> None:
    """Raise `ModelError`, naming those that are known, for an architecture without a table entry."""
    if architecture not in FAMILIES:
        raise ModelError(
            f"model architecture {shown(architecture)} is not known", hint=f"supported: {', '.join(sorted(FAMILIES))}"
        )


def family_of(config: PretrainedConfig) -> Family:
    """The table entry for a config's architecture; raises `ModelError` where there is none or a field is not supported."""
    check_fields({"architectures": config.architectures}, "model config ")
    architecture = (config.architectures or ["none"])[0]
    check_architecture(architecture)
    family = FAMILIES[architecture]
    of_type = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if of_type != architecture:
        raise ModelError(
            f"model config model_type={config.model_type} is of {of_type}, but architectures names {architecture}",
            hint="see the config.json of the model as it was published",
        )
    for name, (supported, hint) in family.required.items():
        found = getattr(config, name)
        if found != supported:
            raise ModelError(f"model config {name}={shown(found)} is not supported for {architecture}", hint=hint)
    check_together(config)
    rotary_positions(config)
    if family.has_experts:
        router_settings(config)
    return family


def head_size(config: PretrainedConfig) -> int:
    """Width of an attention head; configs may leave it to be the hidden size divided by the heads."""
    explicit: int | None = vars(config).get("head_dim")
    return explicit or config.hidden_size // config.num_attention_heads


def architecture_settings(config: PretrainedConfig) -> dict[str, Any]:
    """Arguments of Megatron's TransformerConfig that describe the model, whatever the layout; raises `ModelError`."""
    family = family_of(config)
    carried = {**_CARRIED, **(EXPERT_FIELDS if family.has_experts else {})}
    return {
        **{ours: getattr(config, theirs) for theirs, ours in carried.items()},
        "kv_channels": head_size(config),
        **_COMMON,
        **family.fixed,
        **(router_settings(config) if family.has_experts else {}),
    }


def check_divides(config: PretrainedConfig, parallel: distributed.Config) -> None:
    """Raise `LayoutError` when heads, widths, layers or experts do not split over the ranks, before any allocation."""
    family = family_of(config)
    widths = ["num_attention_heads", "num_key_value_heads", "hidden_size"]
    for name in widths if family.has_experts else [*widths, "intermediate_size"]:
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
    if config.num_hidden_layers % (parallel.pipeline * parallel.virtual_pipeline):
        raise LayoutError(
            f"parallel.pipeline x virtual_pipeline = {parallel.pipeline} x {parallel.virtual_pipeline} does not divide "
            f"the model's num_hidden_layers={config.num_hidden_layers}",
            hint="choose a number of virtual stages that divides the layers of a pipeline stage",
        )
    if family.has_experts:
        check_experts_divide(config, parallel)
    else:
        check_no_experts(parallel)


def padded_vocab_size(config: PretrainedConfig, parallel: distributed.Config) -> int:
    """The vocabulary rounded up so that every tensor rank holds as many rows."""
    return -(-config.vocab_size // parallel.tensor) * parallel.tensor


def tokens_where_attention_is_half(config: PretrainedConfig) -> float:
    """Length from which attention costs more operations than the projections: what balances packed rows.

    A token of a layer costs 2 operations a parameter and, against half its sequence on average, 2 x length x heads x
    head_dim for scores and values together.
    """
    width, head = config.hidden_size, head_size(config)
    attention = width * head * 2 * (config.num_attention_heads + config.num_key_value_heads)
    has_experts = family_of(config).has_experts
    inner = config.moe_intermediate_size * config.num_experts_per_tok if has_experts else config.intermediate_size
    return float(attention + 3 * width * inner) / (config.num_attention_heads * head)
