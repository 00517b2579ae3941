"""From a Hugging Face config to Megatron's settings, and whether a model divides over a layout."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from megatron_fork import distributed
from megatron_fork.errors import ConfigError, LayoutError
from megatron_fork.models.config import ComputeConfig
from megatron_fork.models.experts import EXPERT_FIELDS, check_experts_divide, check_no_experts, router_settings
from megatron_fork.models.families import check_architecture, family_of
from megatron_fork.models.fields import check_fields, shown

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


def head_size(config: PretrainedConfig) -> int:
    """Width of an attention head; if the config does not set it, the hidden size divided by the heads."""
    explicit: int | None = vars(config).get("head_dim")
    return explicit or config.hidden_size // config.num_attention_heads


def architecture_settings(config: PretrainedConfig) -> dict[str, Any]:
    """Arguments of Megatron's TransformerConfig that describe the model under any layout; raises `ModelError`."""
    family = family_of(config)
    carried = {**_CARRIED, **(EXPERT_FIELDS if family.has_experts else {})}
    return {
        **{ours: getattr(config, theirs) for theirs, ours in carried.items()},
        "kv_channels": head_size(config),
        **_COMMON,
        **family.settings,
        **(router_settings(config) if family.has_experts else {}),
    }


def check_divides(config: PretrainedConfig, parallel: distributed.ParallelConfig) -> None:
    """Raise `LayoutError` if heads, widths, layers or experts do not divide over the ranks, before any allocation."""
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


def check_recomputation(config: PretrainedConfig, parallel: distributed.ParallelConfig, compute: ComputeConfig) -> None:
    """Raise `ConfigError` if groups of recomputed layers, which Megatron takes whole, do not fill a pipeline stage."""
    stages = parallel.pipeline * parallel.virtual_pipeline
    layers, together = config.num_hidden_layers // stages, compute.recompute_layers
    if compute.recompute == "full" and layers % together:
        raise ConfigError(
            f"compute.recompute_layers={together} does not divide the {layers} layers of a pipeline stage",
            hint="choose a divisor; 1 keeps the input of every layer",
        )


def padded_vocab_size(config: PretrainedConfig, parallel: distributed.ParallelConfig) -> int:
    """The vocabulary rounded up so that every tensor rank holds the same number of rows."""
    return -(-config.vocab_size // parallel.tensor) * parallel.tensor


def tokens_where_attention_is_half(config: PretrainedConfig) -> float:
    """Length from which attention costs more operations than the projections; used to balance packed rows.

    A token of a layer costs 2 operations per parameter and, against half its sequence on average, 2 x length x heads x
    head_dim for scores and values together.
    """
    width, head = config.hidden_size, head_size(config)
    attention = width * head * 2 * (config.num_attention_heads + config.num_key_value_heads)
    has_experts = family_of(config).has_experts
    inner = config.moe_intermediate_size * config.num_experts_per_tok if has_experts else config.intermediate_size
    return float(attention + 3 * width * inner) / (config.num_attention_heads * head)


# Fields that every model reads, although not every config class declares them.
_UNDECLARED = {"head_dim", "rope_theta"}


def config_from_recipe(fields: dict[str, Any]) -> PretrainedConfig:
    """The Hugging Face config of a recipe; raises `ConfigError` on a field that the model type does not have."""
    fields = dict(fields)
    model_type = fields.pop("model_type", None)
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ConfigError(f"model.hf_config.model_type={shown(model_type)} is not known", hint="try qwen3")
    check_fields(fields, "model.hf_config.", ConfigError)
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type, model_type)
    check_architecture(architecture)
    config_class = CONFIG_MAPPING[model_type]
    # Some fields have another name in the config object than in config.json, e.g. num_experts.
    unknown = sorted(set(fields) - set(vars(config_class())) - set(config_class.attribute_map) - _UNDECLARED)
    if unknown:
        raise ConfigError(
            f"model.hf_config.{unknown[0]} is not a field of {config_class.__name__}",
            hint="see the model's config.json",
        )
    try:
        return config_class(architectures=[architecture], **fields)
    except Exception as error:  # config classes check their fields, and may raise anything
        raise ConfigError(
            f"model.hf_config is not a valid {config_class.__name__}: {' '.join(str(error).split())[:300]}",
            hint="see the model's config.json",
        ) from error
