"""A tiny Qwen3 of Hugging Face and this project's model with the same weights, for tests in one process."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from megatron_fork import distributed
from megatron_fork.checkpoint import load_weights
from megatron_fork.models import StatisticsModel, build_model


def tiny_config(**fields: Any) -> Qwen3Config:
    defaults = {
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
    return Qwen3Config(**{**defaults, **fields})


def hugging_face_model(config: Qwen3Config) -> Qwen3ForCausalLM:
    """Random weights, norms included, so that no tensor is a trivial one."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


@contextmanager
def megatron_model(
    config: Qwen3Config, weights: dict[str, torch.Tensor] | None, **options: Any
) -> Iterator[StatisticsModel]:
    """This project's model under a layout of one rank."""
    distributed.initialize()
    with distributed.parallel_layout(distributed.Config()) as layout:
        model = build_model(config, layout.config, **options)
        if weights is not None:
            load_weights(model, weights)
        yield model
