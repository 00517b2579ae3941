"""Which Hugging Face tensors the parameters of a whole model are made of: its family's layers, one after the other."""

from __future__ import annotations

from collections.abc import Iterator

from transformers import PretrainedConfig

from megatron_fork.models import EMBEDDING, FAMILIES, FINAL_NORM, LM_HEAD, Entry, PackedModel, ValueModel


def backbone_entries(config: PretrainedConfig) -> Iterator[Entry]:
    """Every parameter of the whole model up to the final norm, layer by layer."""
    family = FAMILIES[config.architectures[0]]
    experts = config.num_experts if family.has_experts else 0
    yield EMBEDDING
    for layer in range(config.num_hidden_layers):
        yield from family.layer_entries(layer, experts)
    yield FINAL_NORM


def model_entries(config: PretrainedConfig) -> list[Entry]:
    """Every parameter of a language model that a published checkpoint has: a tied one has no LM head."""
    return [*backbone_entries(config), *([] if config.tie_word_embeddings else [LM_HEAD])]


def entries_of(model: PackedModel) -> list[Entry]:
    """Every parameter of `model`, over all ranks, that a published checkpoint has: a critic has no LM head either."""
    config = model.hf_config
    return list(backbone_entries(config)) if isinstance(model, ValueModel) else model_entries(config)
