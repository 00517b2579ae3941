"""A model of the same family with few layers and small widths, which divides over the same layout."""

from __future__ import annotations

import copy
from dataclasses import replace

from transformers import PretrainedConfig

from megatron_fork import models
from megatron_fork.config import RunConfig
from megatron_fork.distributed import ParallelConfig
from megatron_fork.models import ModelConfig

# Widths for each rank that shares them: multiples of 16 for 8-bit products, and a head that every attention kernel knows.
_HEAD, _WIDTH = 64, 128


def scaled_down(hf_config: PretrainedConfig, config: RunConfig, parallel: ParallelConfig) -> PretrainedConfig:
    """`hf_config` with few layers, heads and experts, for the layout `parallel`; vocabulary and positions stay."""
    small = copy.deepcopy(hf_config)
    together = config.compute.recompute_layers if config.compute.recompute == "full" else 1
    fewest = parallel.pipeline * parallel.virtual_pipeline * together
    layers = fewest if fewest > 1 else min(2, hf_config.num_hidden_layers)
    shared = max(1, hf_config.num_attention_heads // hf_config.num_key_value_heads)
    small.num_hidden_layers = layers
    small.num_key_value_heads = parallel.tensor
    small.num_attention_heads = parallel.tensor * min(2, shared)
    small.hidden_size = small.num_attention_heads * _HEAD
    if "head_dim" in vars(small):
        small.head_dim = _HEAD
    small.intermediate_size = _WIDTH * parallel.tensor
    if models.family_of(hf_config).has_experts:
        small.num_experts = parallel.expert * -(-max(2, hf_config.num_experts_per_tok) // parallel.expert)
        small.moe_intermediate_size = _WIDTH * parallel.expert_tensor
    if vars(small).get("layer_types"):
        small.layer_types = hf_config.layer_types[:layers]
    models.check_divides(small, parallel)
    return small


def as_recipe(config: RunConfig, hf_config: PretrainedConfig, parallel: ParallelConfig, *, alone: bool) -> RunConfig:
    """`config` with random weights of `hf_config`, under `parallel`; `alone`: with an engine of one rank."""
    colocated = replace(config.rollout.colocated, tensor=1) if alone else config.rollout.colocated
    return replace(
        config,
        model=ModelConfig(hf_config={"model_type": hf_config.model_type}),
        parallel=parallel,
        rollout=replace(config.rollout, colocated=colocated),
    )
