"""Megatron's model for this rank, from a Hugging Face config."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, TypeVar

import torch
from megatron.core import parallel_state
from megatron.core.extensions.transformer_engine import TENorm
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from transformers import PretrainedConfig

from megatron_fork import distributed, vocab_parallel
from megatron_fork.distributed import compatibility, versions
from megatron_fork.errors import LayoutError
from megatron_fork.models.architecture import architecture_settings, check_divides, head_size, padded_vocab_size
from megatron_fork.models.compute import choose_backend, compute_fields
from megatron_fork.models.compute_limits import check_fused
from megatron_fork.models.config import ComputeConfig, ExpertsConfig
from megatron_fork.models.families import family_of
from megatron_fork.models.fused_layers import fused_layer
from megatron_fork.models.layers.config import LayerConfig
from megatron_fork.models.layers.norm import RMSNorm
from megatron_fork.models.local_layer import local_kernels, local_layer
from megatron_fork.models.rotary import rotary_positions
from megatron_fork.models.routing import PackedExperts, PackedRouter, Routing
from megatron_fork.models.statistics_model import StatisticsModel
from megatron_fork.models.value_model import ValueModel

Model = TypeVar("Model", bound=torch.nn.Module)


def transformer_config(
    hf_config: PretrainedConfig,
    parallel: distributed.ParallelConfig,
    *,
    dtype: torch.dtype = torch.float32,
    compute: ComputeConfig | None = None,
) -> LayerConfig:
    """Megatron's config for `hf_config` under `parallel`; raises `ModelError` or `LayoutError` before any allocation."""
    compute = compute or ComputeConfig()
    check_divides(hf_config, parallel)
    check_fused(hf_config, parallel, compute, dtype)
    interleaved = parallel.virtual_pipeline > 1
    chosen = choose_backend(compute, dtype)
    positions = rotary_positions(hf_config)
    config = LayerConfig(
        **architecture_settings(hf_config),
        **compute_fields(
            compute,
            chosen,
            has_experts=family_of(hf_config).has_experts,
            scales_attention=positions.scales_attention,
        ),
        **(local_kernels(compute, dtype, head_size(hf_config)) if chosen.backend == "local" else {}),
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if interleaved else None,
        context_parallel_size=parallel.context,
        expert_model_parallel_size=parallel.expert,
        expert_tensor_parallel_size=parallel.expert_tensor,
        sequence_parallel=parallel.sequence,
        # With batched sends the interleaved schedule mixes up messages between two stages, without an error.
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=not interleaved,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",  # the default refuses variable lengths, also in dense models
        # The loss is divided by a global count of tokens before it reaches Megatron, which must only sum it.
        calculate_per_token_loss=True,
    )
    for name, value in positions.attributes.items():
        setattr(config, name, value)  # GPTModel reads these, but the class has no fields for them
    return config


def build_chunks(
    hf_config: PretrainedConfig,
    parallel: distributed.ParallelConfig,
    *,
    dtype: torch.dtype = torch.float32,
    temperature: float = 1.0,
    head: vocab_parallel.VocabParallelConfig | None = None,
    compute: ComputeConfig | None = None,
    experts: ExpertsConfig | None = None,
) -> list[StatisticsModel]:
    """This rank's part of the model, one chunk per virtual pipeline stage; arguments as in `build_model`."""
    routing = Routing(experts or ExpertsConfig())
    return [
        _on_device(
            StatisticsModel(
                **arguments,
                share_embeddings_and_output_weights=hf_config.tie_word_embeddings,
                hf_config=hf_config,
                temperature=temperature,
                head=head or vocab_parallel.VocabParallelConfig(),
                routing=routing,
            )
        )
        for arguments in _arguments(hf_config, parallel, dtype, compute, routing)
    ]


def build_model(
    hf_config: PretrainedConfig,
    parallel: distributed.ParallelConfig,
    *,
    dtype: torch.dtype = torch.float32,
    temperature: float = 1.0,
    head: vocab_parallel.VocabParallelConfig | None = None,
    compute: ComputeConfig | None = None,
    experts: ExpertsConfig | None = None,
) -> StatisticsModel:
    """This rank's part of the model, with Megatron's own initial weights until a checkpoint is loaded.

    Args:
        hf_config: the Hugging Face config, e.g. of Qwen3.
        parallel: the layout, whose process groups must exist (`distributed.parallel_layout`); without virtual stages.
        dtype: of parameters and activations; statistics and loss are always float32.
        temperature: of the softmax whose log-probs and entropies the model returns.
        head: how they are computed.
        compute: kernels and recomputation.
        experts: balance loss and replay of a mixture of experts.

    """
    if parallel.virtual_pipeline > 1:
        raise LayoutError(
            f"parallel.virtual_pipeline={parallel.virtual_pipeline} makes more than one model per rank",
            hint="call build_chunks",
        )
    chunks = build_chunks(
        hf_config, parallel, dtype=dtype, temperature=temperature, head=head, compute=compute, experts=experts
    )
    return chunks[0]


def build_outline(hf_config: PretrainedConfig) -> StatisticsModel:
    """The whole model on one rank and on the meta device, for the names and shapes of its parameters.

    It has local layers, whose names in a checkpoint are the same as those of Transformer Engine's.
    """
    routing = Routing(ExpertsConfig())
    local = ComputeConfig(backend="local")
    with torch.device("meta"):
        for arguments in _arguments(hf_config, distributed.ParallelConfig(), torch.float32, local, routing):
            arguments["config"].use_cpu_initialization = True  # a GPU would not ask for the default device
            return StatisticsModel(
                **arguments,
                share_embeddings_and_output_weights=hf_config.tie_word_embeddings,
                hf_config=hf_config,
                temperature=1.0,
                head=vocab_parallel.VocabParallelConfig(),
                routing=routing,
            )
    raise AssertionError("a layout has at least one chunk")


def build_value_chunks(
    hf_config: PretrainedConfig,
    parallel: distributed.ParallelConfig,
    *,
    dtype: torch.dtype = torch.float32,
    compute: ComputeConfig | None = None,
    experts: ExpertsConfig | None = None,
) -> list[ValueModel]:
    """This rank's part of a critic: the backbone of `hf_config` and a head with one value per token, 0 at first."""
    routing = Routing(experts or ExpertsConfig())
    return [
        _on_device(
            ValueModel(**arguments, share_embeddings_and_output_weights=False, hf_config=hf_config, routing=routing)
        )
        for arguments in _arguments(hf_config, parallel, dtype, compute, routing)
    ]


def _on_device(model: Model) -> Model:
    return model.cuda() if torch.cuda.is_available() else model


def _arguments(
    hf_config: PretrainedConfig,
    parallel: distributed.ParallelConfig,
    dtype: torch.dtype,
    compute: ComputeConfig | None,
    routing: Routing,
) -> Iterator[dict[str, Any]]:
    """The arguments of Megatron's GPTModel on this rank, chunk by chunk."""
    compatibility.install()
    compute = compute or ComputeConfig()
    config = transformer_config(hf_config, parallel, dtype=dtype, compute=compute)
    fused = choose_backend(compute, dtype).backend == "transformer_engine"
    model_parallel_cuda_manual_seed(0)
    for chunk in range(parallel.virtual_pipeline):
        stage = chunk if parallel.virtual_pipeline > 1 else None
        yield {
            "config": config,
            "transformer_layer_spec": _layers(config, stage, routing, fused=fused),
            "vocab_size": padded_vocab_size(hf_config, parallel),
            "max_sequence_length": hf_config.max_position_embeddings,
            "pre_process": parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=stage),
            "post_process": parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=stage),
            **rotary_positions(hf_config).arguments,
            "vp_stage": stage,
        }


def _layers(
    config: TransformerConfig, stage: int | None, routing: Routing, *, fused: bool
) -> TransformerBlockSubmodules:
    layer, norm = (fused_layer(config), TENorm) if fused else (local_layer(config), RMSNorm)
    if config.num_moe_experts:
        versions.replace_experts(layer, PackedExperts, partial(PackedRouter, routing=routing))
    count = get_num_layers_to_build(config, vp_stage=stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=norm)
