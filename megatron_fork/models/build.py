"""Megatron's model for this rank, from a Hugging Face config."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from transformers import PretrainedConfig

from megatron_fork import vocab_parallel
from megatron_fork.distributed import compatibility, layout
from megatron_fork.models.attention import PackedAttention
from megatron_fork.models.families import check_divides, family_of, padded_vocab_size, rotary_base
from megatron_fork.models.norm import RMSNorm
from megatron_fork.models.statistics_model import StatisticsModel
from megatron_fork.models.value_model import ValueModel


def transformer_config(
    hf_config: PretrainedConfig, parallel: layout.Config, *, dtype: torch.dtype = torch.float32
) -> TransformerConfig:
    """Megatron's config for `hf_config` under `parallel`; raises `ModelError` or `LayoutError` before any allocation."""
    family = family_of(hf_config)
    check_divides(hf_config, parallel)
    carried = {ours: getattr(hf_config, theirs) for theirs, ours in family.carried.items()}
    return TransformerConfig(
        **carried,
        **family.fixed,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        context_parallel_size=parallel.context,
        expert_model_parallel_size=parallel.expert,
        sequence_parallel=parallel.sequence,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",  # the default refuses variable lengths, also in dense models
        # The loss is divided by a global count of tokens before it reaches Megatron: it must only be summed there.
        calculate_per_token_loss=True,
        use_cpu_initialization=not torch.cuda.is_available(),
        # Fused kernels of Transformer Engine and apex; the local spec runs without them.
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
    )


def build_model(
    hf_config: PretrainedConfig,
    parallel: layout.Config,
    *,
    dtype: torch.dtype = torch.float32,
    temperature: float = 1.0,
    head: vocab_parallel.Config | None = None,
) -> StatisticsModel:
    """This rank's part of the model, with Megatron's own initial weights until a checkpoint is loaded.

    Args:
        hf_config: the Hugging Face config, e.g. of Qwen3.
        parallel: the layout, for which Megatron's groups must exist (`distributed.parallel_layout`).
        dtype: parameters and activations; statistics and loss are float32 whatever it is.
        temperature: of the softmax whose log-probs and entropies the model reports.
        head: how they are computed.

    """
    arguments = _arguments(hf_config, parallel, dtype)
    model = StatisticsModel(
        **arguments,
        share_embeddings_and_output_weights=hf_config.tie_word_embeddings,
        hf_config=hf_config,
        temperature=temperature,
        head=head or vocab_parallel.Config(),
    )
    return model.cuda() if torch.cuda.is_available() else model


def build_value_model(
    hf_config: PretrainedConfig, parallel: layout.Config, *, dtype: torch.dtype = torch.float32
) -> ValueModel:
    """This rank's part of a critic: the backbone of `hf_config`, one value a token on top, 0 at first."""
    arguments = _arguments(hf_config, parallel, dtype)
    model = ValueModel(**arguments, share_embeddings_and_output_weights=False, hf_config=hf_config)
    return model.cuda() if torch.cuda.is_available() else model


def _arguments(hf_config: PretrainedConfig, parallel: layout.Config, dtype: torch.dtype) -> dict[str, Any]:
    """What Megatron's GPTModel is built from on this rank."""
    compatibility.install()
    config = transformer_config(hf_config, parallel, dtype=dtype)
    model_parallel_cuda_manual_seed(0)
    return {
        "config": config,
        "transformer_layer_spec": _layers(config),
        "vocab_size": padded_vocab_size(hf_config, parallel),
        "max_sequence_length": hf_config.max_position_embeddings,
        "pre_process": parallel_state.is_pipeline_first_stage(),
        "post_process": parallel_state.is_pipeline_last_stage(),
        "position_embedding_type": "rope",
        "rotary_base": rotary_base(hf_config),
    }


def _layers(config: TransformerConfig) -> TransformerBlockSubmodules:
    layer: ModuleSpec = get_gpt_layer_local_spec(qk_layernorm=config.qk_layernorm, normalization=config.normalization)
    parts: Any = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
    attention: Any = parts.self_attention.submodules
    attention.core_attention = PackedAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    return TransformerBlockSubmodules(layer_specs=[layer] * get_num_layers_to_build(config), layer_norm=RMSNorm)
