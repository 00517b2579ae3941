"""Parameters by their names in the whole model: this rank's, and all of a published checkpoint by its family's table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from megatron.core.distributed import DistributedDataParallel
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from torch import nn
from torch.distributed import ProcessGroup
from transformers import PretrainedConfig

from megatron_fork.errors import CheckpointError
from megatron_fork.models import (
    EMBEDDING,
    FAMILIES,
    FINAL_NORM,
    LM_HEAD,
    Entry,
    PackedModel,
    StatisticsModel,
    ValueModel,
)

# Parameter names in Transformer Engine's modules, and in Megatron's local ones.
_TRANSFORMER_ENGINE = (
    (re.compile(r"\.self_attention\.linear_qkv\.layer_norm_weight$"), r".input_layernorm.weight"),
    (re.compile(r"\.mlp\.linear_fc1\.layer_norm_weight$"), r".pre_mlp_layernorm.weight"),
    (re.compile(r"\.mlp\.experts\.(linear_fc[12])\.weight(\d+)$"), r".mlp.experts.local_experts.\2.\1.weight"),
)
_LAYER = re.compile(r"(?<=^decoder\.layers\.)\d+")
_EXPERT = re.compile(r"(?<=\.local_experts\.)\d+")


def unwrap(model: nn.Module) -> PackedModel:
    """The model inside Megatron's data-parallel and half-precision wrappers."""
    while isinstance(model, DistributedDataParallel | Float16Module):
        model = model.module
    if not isinstance(model, StatisticsModel | ValueModel):
        raise CheckpointError(
            f"{type(model).__name__} is not a model of this project", hint="build it with build_model"
        )
    return model


def unwrap_chunks(model: nn.Module | Sequence[nn.Module]) -> list[PackedModel]:
    """The virtual pipeline stages of this rank, in order; a single model counts as one."""
    return [unwrap(chunk) for chunk in ([model] if isinstance(model, nn.Module) else model)]


def local_parameters(chunks: Sequence[PackedModel]) -> dict[str, nn.Parameter]:
    """This rank's parameters by name; layers are numbered over all stages, and experts over all expert ranks."""
    parameters = {}
    for chunk in chunks:
        groups = chunk.pg_collection
        first_layer = get_transformer_layer_offset(chunk.config, vp_stage=chunk.vp_stage, pp_rank=groups.pp.rank())
        first_expert = groups.ep.rank() * ((chunk.config.num_moe_experts or 0) // groups.ep.size())
        for name, parameter in chunk.named_parameters():
            parameters[whole_model_name(name, first_layer, first_expert)] = parameter
    return parameters


def whole_model_name(name: str, first_layer: int, first_expert: int) -> str:
    """The name in the whole model of a chunk's parameter, given the chunk's first layer and expert."""
    for pattern, replacement in _TRANSFORMER_ENGINE:
        name = pattern.sub(replacement, name)
    name = _LAYER.sub(lambda number: str(int(number[0]) + first_layer), name)
    return _EXPERT.sub(lambda number: str(int(number[0]) + first_expert), name)


def tensor_group(entry: Entry, groups: Any) -> ProcessGroup:
    """The process group over which a parameter is sharded; `groups` is Megatron's `ProcessGroupCollection`."""
    group: ProcessGroup = groups.tp if entry.expert is None else groups.expt_tp
    return group


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
