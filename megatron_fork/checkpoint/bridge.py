"""Hugging Face weights into this rank's part of a model, whatever its layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from megatron_fork.checkpoint.parameters import local_parameters, tensor_group, unwrap_chunks
from megatron_fork.checkpoint.published import PublishedWeights
from megatron_fork.checkpoint.table import EMBEDDING, LM_HEAD, Entry, entries_of
from megatron_fork.errors import CheckpointError
from megatron_fork.models import PackedModel, ValueModel


@torch.no_grad()
def load_weights(model: nn.Module | Sequence[nn.Module], weights: Mapping[str, Tensor]) -> None:
    """Fill this rank's parameters from Hugging Face tensors by name; raises `CheckpointError` on a missing one.

    Args:
        model: this rank's model, or its virtual pipeline stages in order.
        weights: names of the published checkpoints; experts may be fused as transformers holds them in memory.

    """
    chunks = unwrap_chunks(model)
    weights = PublishedWeights(weights)
    table = {entry.megatron: entry for entry in entries_of(chunks[0])}
    # A tied model split over pipeline stages keeps a second copy of the embedding on the last stage.
    table.setdefault(LM_HEAD.megatron, Entry(LM_HEAD.megatron, EMBEDDING.hugging_face, LM_HEAD.rule))
    for name, parameter in local_parameters(chunks).items():
        if isinstance(chunks[0], ValueModel) and name == LM_HEAD.megatron:
            continue  # the critic's own, which no language model has
        _load(table[name], parameter, weights, chunks[0])


def _load(entry: Entry, parameter: Tensor, weights: Mapping[str, Tensor], model: PackedModel) -> None:
    config, group = model.hf_config, tensor_group(entry, model.pg_collection)
    tensors = sources_of(entry, weights)
    wanted = entry.rule.join([torch.empty_like(parameter, device="meta")] * group.size(), config)
    for source, tensor, like in zip(entry.hugging_face, tensors, wanted, strict=True):
        check_shape(source, tuple(tensor.shape), tuple(like.shape))
    parameter.copy_(entry.rule.shards(tensors, group.size(), config)[group.rank()])


def sources_of(entry: Entry, weights: Mapping[str, Tensor]) -> list[Tensor]:
    """The Hugging Face tensors of a parameter; raises `CheckpointError` where one is missing."""
    missing = [source for source in entry.hugging_face if source not in weights]
    if missing:
        raise CheckpointError(
            f"the checkpoint has no tensor {missing[0]}", hint="the folder is incomplete or of another architecture"
        )
    return [weights[source] for source in entry.hugging_face]


def check_shape(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Raise `CheckpointError` where a tensor is not as config.json says."""
    if found != wanted:
        raise CheckpointError(
            f"the checkpoint's {name} has the shape {list(found)}, the model's {list(wanted)}",
            hint="config.json and the weights are of different models",
        )
