"""The model families, one file each: config mapping and tensor names together, in one table by Hugging Face's architecture."""

from __future__ import annotations

from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from megatron_fork.errors import ModelError
from megatron_fork.models.experts import router_settings
from megatron_fork.models.families.family import EMBEDDING, FINAL_NORM, LM_HEAD, Entry, Family
from megatron_fork.models.families.llama import LLAMA
from megatron_fork.models.families.qwen2 import QWEN2
from megatron_fork.models.families.qwen3 import QWEN3, QWEN3_MOE
from megatron_fork.models.fields import check_fields, check_together, shown
from megatron_fork.models.rotary import rotary_positions

__all__ = ["EMBEDDING", "FAMILIES", "FINAL_NORM", "LM_HEAD", "Entry", "Family", "check_architecture", "family_of"]

FAMILIES = {
    "LlamaForCausalLM": LLAMA,
    "Qwen2ForCausalLM": QWEN2,
    "Qwen3ForCausalLM": QWEN3,
    "Qwen3MoeForCausalLM": QWEN3_MOE,
}


def check_architecture(architecture: str) -> None:
    """Raise `ModelError` with the supported ones for an architecture without a table entry."""
    if architecture not in FAMILIES:
        raise ModelError(
            f"model architecture {shown(architecture)} is not known", hint=f"supported: {', '.join(sorted(FAMILIES))}"
        )


def family_of(config: PretrainedConfig) -> Family:
    """The table entry for a config's architecture; raises `ModelError` if there is none or a field is not supported."""
    check_fields({"architectures": config.architectures}, "model config ")
    architecture = (config.architectures or ["none"])[0]
    check_architecture(architecture)
    family = FAMILIES[architecture]
    of_type = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if of_type != architecture:
        raise ModelError(
            f"model config model_type={config.model_type} belongs to {of_type}, but architectures names {architecture}",
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
