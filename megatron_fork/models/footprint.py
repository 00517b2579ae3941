"""How many parameters a model has, and how many of them the fullest rank holds; nothing is allocated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from megatron_fork import distributed
from megatron_fork.errors import ModelError
from megatron_fork.models.architecture import check_divides, padded_vocab_size
from megatron_fork.models.fields import shown


def hugging_face_outline(config: PretrainedConfig) -> PreTrainedModel:
    """The model of transformers on the meta device; raises `ModelError` if its class does not accept the config."""
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # model classes may raise anything
        raise ModelError(
            f"transformers cannot build a model from the config: {shown(error) or type(error).__name__}",
            hint="see the config.json of the model as it was published",
        ) from error
    return model


@dataclass(frozen=True)
class Footprint:
    """Parameters of one rank. Experts are counted separately: their optimizer state is sharded over other ranks."""

    dense: int
    experts: int

    @property
    def total(self) -> int:
        return self.dense + self.experts


def count_parameters(config: PretrainedConfig) -> int:
    """Parameters of the whole model; tied weights count once."""
    return sum(count for _, count in _parameters(config))


def fullest_rank(config: PretrainedConfig, parallel: distributed.ParallelConfig) -> Footprint:
    """What a rank of the fullest pipeline stage holds; raises `LayoutError` if the model does not divide like that.

    All stages have the same number of layers. The first also holds the embedding, the last the output layer and the final
    norm; tied weights are on both.
    """
    check_divides(config, parallel)
    layers_dense = layers_experts = final_norm = 0
    for name, count in _parameters(config):
        if ".experts." in name:
            layers_experts += count // (parallel.expert * parallel.expert_tensor)
        elif ".layers." in name:
            layers_dense += count if _is_replicated(name) else count // parallel.tensor
        elif _is_replicated(name):
            final_norm += count
    table = padded_vocab_size(config, parallel) // parallel.tensor * config.hidden_size
    tables = 1 if parallel.pipeline > 1 or config.tie_word_embeddings else 2
    dense = layers_dense // parallel.pipeline + tables * table + final_norm
    return Footprint(dense, layers_experts // parallel.pipeline)


def _is_replicated(name: str) -> bool:
    """Whether every tensor rank holds the whole parameter, as for norms and routers."""
    return "norm" in name or name.endswith("mlp.gate.weight")


def _parameters(config: PretrainedConfig) -> Iterator[tuple[str, int]]:
    """Hugging Face's names and sizes of the parameters."""
    for name, parameter in hugging_face_outline(config).named_parameters():
        yield name, parameter.numel()
