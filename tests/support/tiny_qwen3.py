"""Tiny models of Hugging Face, Qwen3 and its relatives, and this project's model with the same weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, Qwen3Config

from megatron_fork import distributed
from megatron_fork.conversion import load_weights
from megatron_fork.models import StatisticsModel, build_model

_COMMON: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}


def tiny_config(**fields: Any) -> Qwen3Config:
    return Qwen3Config(**{**_COMMON, **fields})


# What each family has beside the fields of `tiny_config`, whose heads of 16 are wider than hidden size / heads.
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 16},
    "qwen3_moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
    },
    "qwen2": {"architectures": ["Qwen2ForCausalLM"]},
    "llama": {"architectures": ["LlamaForCausalLM"]},
}


def family_config(family: str, **fields: Any) -> PretrainedConfig:
    """The config of a tiny model of one of `FAMILIES`, named by Hugging Face's `model_type`."""
    common = {name: value for name, value in _COMMON.items() if name not in ("architectures", "head_dim")}
    return CONFIG_MAPPING[family](**{**common, **FAMILIES[family], **fields})


def hugging_face_model(config: PretrainedConfig) -> PreTrainedModel:
    """Random weights, norms and biases included, so that no tensor is a trivial one."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif "bias" in name:
                parameter.uniform_(-0.5, 0.5)
    return model


@contextmanager
def megatron_model(
    config: PretrainedConfig, weights: dict[str, torch.Tensor] | None, **options: Any
) -> Iterator[StatisticsModel]:
    """This project's model under a layout of one rank."""
    distributed.initialize()
    with distributed.parallel_layout(distributed.ParallelConfig()) as layout:
        model = build_model(config, layout.config, **options)
        if weights is not None:
            load_weights(model, weights)
        yield model
