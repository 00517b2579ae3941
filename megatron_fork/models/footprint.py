"""How many parameters a model has, and how many of them the fullest rank holds; nothing is allocated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import PretrainedConfig

from megatron_fork import distributed
from megatron_fork.errors import ModelError
from megatron_fork.models.architecture import check_divides, head_size, padded_vocab_size
from megatron_fork.models.families import family_of
from megatron_fork.models.fields import shown

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def hugging_face_outline(config: PretrainedConfig) -> PreTrainedModel:
    """The model of transformers on the meta device; raises `ModelError` if its class does not accept the config."""
    # Imported here: the model classes take seconds, and parameters are counted without them.
    from transformers import AutoModelForCausalLM

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
    return ParameterCounts.of(config).total


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of a whole model by the way in which ranks share them."""

    config: PretrainedConfig
    sharded: int
    """Of layers, divided over tensor ranks."""
    replicated: int
    """Of layers, whole on every tensor rank: norms and routers."""
    experts: int
    """Of layers, divided over expert and expert tensor ranks."""
    final_norm: int

    @classmethod
    def of(cls, config: PretrainedConfig) -> ParameterCounts:
        """From the tensors that the model's family names; raises `ModelError` if the config is not supported."""
        family, layers, sizes = family_of(config), config.num_hidden_layers, _sizes(config)
        names = [name for entry in family.layer for name in entry.hugging_face]
        replicated = sum(sizes[_tensor(name)] for name in names if _is_replicated(name))
        sharded = sum(sizes[_tensor(name)] for name in names if not _is_replicated(name))
        experts = 0
        if family.has_experts:
            projections = sum(len(entry.hugging_face) for entry in family.expert)
            experts = config.num_experts * projections * config.hidden_size * config.moe_intermediate_size
        return cls(config, layers * sharded, layers * replicated, layers * experts, config.hidden_size)

    @property
    def total(self) -> int:
        """Of the whole model; tied weights count once."""
        tables = 1 if self.config.tie_word_embeddings else 2
        table = self.config.vocab_size * self.config.hidden_size
        return self.sharded + self.replicated + self.experts + self.final_norm + tables * table

    def stages(self, parallel: distributed.ParallelConfig, *, critic: bool = False) -> list[Footprint]:
        """What a rank of each pipeline stage holds; raises `LayoutError` if the model does not divide like that.

        All stages have the same number of layers. The first also holds the embedding, the last the output layer and the
        final norm; tied weights are on both. A `critic` has one row in the output layer's place, whole on every tensor rank.
        """
        check_divides(self.config, parallel)
        last, tied = parallel.pipeline - 1, self.config.tie_word_embeddings
        layers = (self.sharded // parallel.tensor + self.replicated) // parallel.pipeline
        experts = self.experts // (parallel.expert * parallel.expert_tensor * parallel.pipeline)
        table = padded_vocab_size(self.config, parallel) // parallel.tensor * self.config.hidden_size
        output = self.config.hidden_size if critic else 0 if tied and last == 0 else table
        return [
            Footprint(layers + table * (stage == 0) + (output + self.final_norm) * (stage == last), experts)
            for stage in range(parallel.pipeline)
        ]


def fullest_rank(config: PretrainedConfig, parallel: distributed.ParallelConfig) -> Footprint:
    """What a rank of the fullest pipeline stage holds; raises `LayoutError` if the model does not divide like that."""
    return max(ParameterCounts.of(config).stages(parallel), key=lambda stage: stage.total)


def _sizes(config: PretrainedConfig) -> dict[str, int]:
    """Numbers in a tensor of a layer, without those of experts."""
    hidden, head, inner = config.hidden_size, head_size(config), config.intermediate_size
    query, key = config.num_attention_heads * head, config.num_key_value_heads * head
    return {
        "input_layernorm.weight": hidden,
        "q_proj.weight": query * hidden,
        "k_proj.weight": key * hidden,
        "v_proj.weight": key * hidden,
        "q_proj.bias": query,
        "k_proj.bias": key,
        "v_proj.bias": key,
        "q_norm.weight": head,
        "k_norm.weight": head,
        "o_proj.weight": query * hidden,
        "post_attention_layernorm.weight": hidden,
        "gate.weight": getattr(config, "num_experts", 0) * hidden,
        "gate_proj.weight": hidden * inner,
        "up_proj.weight": hidden * inner,
        "down_proj.weight": hidden * inner,
    }


def _tensor(name: str) -> str:
    """The last two parts of a Hugging Face name: `q_proj.weight`."""
    return ".".join(name.split(".")[-2:])


def _is_replicated(name: str) -> bool:
    """Whether every tensor rank holds the whole parameter, as for norms and routers."""
    return "norm" in name or name.endswith("mlp.gate.weight")
