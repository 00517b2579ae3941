"""How many parameters a model has, and how many of them the fullest rank holds; nothing is allocated."""

from __future__ import annotations

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
    return sum(parameter.numel() for parameter in hugging_face_outline(config).parameters())


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
        sharded = replicated = experts = final_norm = 0
        for name, parameter in hugging_face_outline(config).named_parameters():
            count = parameter.numel()
            if ".experts." in name:
                experts += count
            elif ".layers." in name and _is_replicated(name):
                replicated += count
            elif ".layers." in name:
                sharded += count
            elif _is_replicated(name):
                final_norm += count
        return cls(config, sharded, replicated, experts, final_norm)

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


def _is_replicated(name: str) -> bool:
    """Whether every tensor rank holds the whole parameter, as for norms and routers."""
    return "norm" in name or name.endswith("mlp.gate.weight")
