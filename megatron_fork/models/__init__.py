"""Megatron models from Hugging Face configs."""

from typing import TYPE_CHECKING

from megatron_fork import opened

if TYPE_CHECKING:
    from megatron_fork.models.architecture import (
        check_divides,
        check_recomputation,
        config_from_recipe,
        head_size,
        padded_vocab_size,
        tokens_where_attention_is_half,
    )
    from megatron_fork.models.attention_kernels import choose_attention
    from megatron_fork.models.build import build_chunks, build_model, build_outline, build_value_chunks
    from megatron_fork.models.compute import check_kernels_are_local, choose_backend, choose_elementwise
    from megatron_fork.models.compute_limits import check_fused
    from megatron_fork.models.config import ComputeConfig, ExpertsConfig, ModelConfig
    from megatron_fork.models.families import (
        EMBEDDING,
        FAMILIES,
        FINAL_NORM,
        LM_HEAD,
        Entry,
        family_of,
    )
    from megatron_fork.models.fields import check_fields, shown
    from megatron_fork.models.flops import training_flops
    from megatron_fork.models.footprint import (
        Footprint,
        ParameterCounts,
        count_parameters,
        fullest_rank,
        hugging_face_outline,
    )
    from megatron_fork.models.fused_layers import accumulate_in_buffers, tokens_multiple
    from megatron_fork.models.grouping import PADDING_LIMIT, SequenceGroup, group_by_length
    from megatron_fork.models.layers.packed_row import PackedRow
    from megatron_fork.models.rotary import longest_sequence
    from megatron_fork.models.routing import Routing
    from megatron_fork.models.statistics_model import StatisticsModel
    from megatron_fork.models.value_model import PackedModel, ValueModel
else:
    __getattr__ = opened(__name__, __file__, former={"Config": "ModelConfig"})

__all__ = [
    "PADDING_LIMIT",
    "training_flops",
    "EMBEDDING",
    "FAMILIES",
    "FINAL_NORM",
    "LM_HEAD",
    "ComputeConfig",
    "ModelConfig",
    "Entry",
    "ExpertsConfig",
    "Footprint",
    "ParameterCounts",
    "PackedModel",
    "PackedRow",
    "Routing",
    "SequenceGroup",
    "StatisticsModel",
    "ValueModel",
    "accumulate_in_buffers",
    "build_chunks",
    "build_model",
    "build_outline",
    "build_value_chunks",
    "check_divides",
    "check_kernels_are_local",
    "check_fields",
    "check_fused",
    "check_recomputation",
    "choose_attention",
    "choose_backend",
    "choose_elementwise",
    "config_from_recipe",
    "count_parameters",
    "family_of",
    "fullest_rank",
    "group_by_length",
    "head_size",
    "hugging_face_outline",
    "longest_sequence",
    "padded_vocab_size",
    "shown",
    "tokens_multiple",
    "tokens_where_attention_is_half",
]
