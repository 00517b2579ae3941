"""Which model a run trains: a Hugging Face folder, or a config written in the recipe and random weights."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from megatron_fork.errors import ConfigError
from megatron_fork.models.families import check_architecture
from megatron_fork.models.fields import check_fields, shown

# Fields that every model reads, though not every config class declares them.
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
    # A config keeps some fields under another name than config.json does, e.g. num_experts.
    unknown = sorted(set(fields) - set(vars(config_class())) - set(config_class.attribute_map) - _UNDECLARED)
    if unknown:
        raise ConfigError(
            f"model.hf_config.{unknown[0]} is not a field of {config_class.__name__}",
            hint="see the model's config.json",
        )
    try:
        return config_class(architectures=[architecture], **fields)
    except Exception as error:  # config classes check their fields, and raise whatever they like
        raise ConfigError(
            f"model.hf_config is no {config_class.__name__}: {' '.join(str(error).split())[:300]}",
            hint="see the model's config.json",
        ) from error
