"""Hugging Face <-> Megatron weights: one declarative table, both directions, any tensor- and pipeline-parallel layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from torch import Tensor, nn
from transformers import PretrainedConfig

from megatron_fork.checkpoint.layouts import GatedProjection, QueryKeyValue, Rule, Split, Vocabulary
from megatron_fork.distributed import collectives
from megatron_fork.errors import CheckpointError
from megatron_fork.models import PackedModel, StatisticsModel, ValueModel


@dataclass(frozen=True)
class Entry:
    """One Megatron parameter and the Hugging Face tensors that it is made of; `{layer}` counts from 0."""

    megatron: str
    hugging_face: tuple[str, ...]
    rule: Rule

    def at(self, layer: int) -> Entry:
        return Entry(
            self.megatron.format(layer=layer), tuple(name.format(layer=layer) for name in self.hugging_face), self.rule
        )


_ATTENTION = "model.layers.{layer}.self_attn."
_EMBEDDING = Entry("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), Vocabulary())
_FINAL = [
    Entry("decoder.final_layernorm.weight", ("model.norm.weight",), Rule()),
    Entry("output_layer.weight", ("lm_head.weight",), Vocabulary()),
]
_DENSE_LAYER = [
    Entry("decoder.layers.{layer}.input_layernorm.weight", ("model.layers.{layer}.input_layernorm.weight",), Rule()),
    Entry(
        "decoder.layers.{layer}.self_attention.linear_qkv.weight",
        tuple(f"{_ATTENTION}{part}_proj.weight" for part in "qkv"),
        QueryKeyValue(),
    ),
    Entry("decoder.layers.{layer}.self_attention.linear_proj.weight", (f"{_ATTENTION}o_proj.weight",), Split(1)),
    Entry(
        "decoder.layers.{layer}.pre_mlp_layernorm.weight",
        ("model.layers.{layer}.post_attention_layernorm.weight",),
        Rule(),
    ),
    Entry(
        "decoder.layers.{layer}.mlp.linear_fc1.weight",
        ("model.layers.{layer}.mlp.gate_proj.weight", "model.layers.{layer}.mlp.up_proj.weight"),
        GatedProjection(),
    ),
    Entry("decoder.layers.{layer}.mlp.linear_fc2.weight", ("model.layers.{layer}.mlp.down_proj.weight",), Split(1)),
]
_QUERY_KEY_NORM = [
    Entry(
        f"decoder.layers.{{layer}}.self_attention.{part}_layernorm.weight", (f"{_ATTENTION}{part}_norm.weight",), Rule()
    )
    for part in "qk"
]

LAYERS = {"Qwen3ForCausalLM": _DENSE_LAYER + _QUERY_KEY_NORM}


def entries(config: PretrainedConfig) -> list[Entry]:
    """Every parameter of the whole model in Hugging Face's order; tied models have no `lm_head`."""
    layers = [entry.at(layer) for layer in range(config.num_hidden_layers) for entry in LAYERS[config.architectures[0]]]
    return [_EMBEDDING, *layers, *(_FINAL[:1] if config.tie_word_embeddings else _FINAL)]


def unwrap(model: nn.Module) -> PackedModel:
    """The model inside Megatron's data-parallel and half-precision wrappers."""
    while isinstance(model, DistributedDataParallel | Float16Module):
        model = model.module
    if not isinstance(model, StatisticsModel | ValueModel):
        raise CheckpointError(
            f"{type(model).__name__} is not a model of this project", hint="build it with build_model"
        )
    return model


def local_parameters(model: PackedModel) -> dict[str, nn.Parameter]:
    """This rank's parameters under names of the whole model: layers count from the first pipeline stage."""
    offset = get_transformer_layer_offset(model.config)
    parameters = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if name.startswith("decoder.layers."):
            parts[2] = str(int(parts[2]) + offset)
        parameters[".".join(parts)] = parameter
    return parameters


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Fill this rank's parameters from Hugging Face tensors by name; raises `CheckpointError` on a missing one."""
    inner = unwrap(model)
    config, group = inner.hf_config, inner.pg_collection.tp
    parameters = local_parameters(inner)
    table = {entry.megatron: entry for entry in entries(config)}
    # A tied model split over pipeline stages keeps a second copy of the embedding on the last stage.
    table.setdefault("output_layer.weight", Entry("output_layer.weight", _EMBEDDING.hugging_face, Vocabulary()))
    for name, parameter in parameters.items():
        if isinstance(inner, ValueModel) and name == "output_layer.weight":
            continue  # the critic's own, which no language model has
        entry = table[name]
        missing = [source for source in entry.hugging_face if source not in weights]
        if missing:
            raise CheckpointError(
                f"the checkpoint has no tensor {missing[0]}", hint="the folder is incomplete or of another architecture"
            )
        tensors = [weights[source] for source in entry.hugging_face]
        wanted = entry.rule.join([torch.empty_like(parameter, device="meta")] * group.size(), config)
        for source, tensor, like in zip(entry.hugging_face, tensors, wanted, strict=True):
            if tensor.shape != like.shape:
                raise CheckpointError(
                    f"the checkpoint's {source} has the shape {list(tensor.shape)}, the model's {list(like.shape)}",
                    hint="config.json and the weights are of different models",
                )
        parameter.copy_(entry.rule.shards(tensors, group.size(), config)[group.rank()])


@torch.no_grad()
def iter_hf_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every Hugging Face tensor of the whole model, one parameter at a time, on every rank.

    All ranks must iterate together: each parameter is broadcast from its pipeline stage and gathered over the tensor ranks.
    """
    inner = unwrap(model)
    config, tensor_group, pipeline_group = inner.hf_config, inner.pg_collection.tp, inner.pg_collection.pp
    parameters = local_parameters(inner)
    stages = collectives.gather_objects({name: tuple(p.shape) for name, p in parameters.items()}, pipeline_group)
    for entry in entries(config):
        stage = next(index for index, shapes in enumerate(stages) if entry.megatron in shapes)
        if stage == pipeline_group.rank():
            shard = parameters[entry.megatron].detach()
        else:
            shard = torch.empty(
                stages[stage][entry.megatron], dtype=inner.config.params_dtype, device=next(inner.parameters()).device
            )
        if pipeline_group.size() > 1:
            shard = collectives.broadcast(
                shard.contiguous(), torch.distributed.get_global_rank(pipeline_group, stage), pipeline_group
            )
        shards = collectives.all_gather(shard, tensor_group)
        yield from zip(entry.hugging_face, entry.rule.join(list(shards), config), strict=True)
