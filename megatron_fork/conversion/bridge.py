"""Hugging Face weights into this rank's part of a model, whatever its layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from megatron_fork.conversion.agreement import check_weights
from megatron_fork.conversion.parameters import local_parameters, tensor_group, unwrap_chunks
from megatron_fork.conversion.published import PublishedWeights
from megatron_fork.conversion.table import entries_of
from megatron_fork.models import EMBEDDING, LM_HEAD, Entry, PackedModel, ValueModel


@torch.no_grad()
def load_weights(model: nn.Module | Sequence[nn.Module], weights: Mapping[str, Tensor]) -> None:
    """Fill this rank's parameters from Hugging Face tensors by name; raises `CheckpointError` as `check_weights` does.

    Args:
        model: this rank's model, or its virtual pipeline stages in order.
        weights: of the whole model, by the names of the published checkpoints; experts may be fused as transformers holds
            them in memory.

    """
    chunks = unwrap_chunks(model)
    check_weights(weights, chunks[0].hf_config, needs_head=not isinstance(chunks[0], ValueModel))
    weights = PublishedWeights(weights)
    table = {entry.megatron: entry for entry in entries_of(chunks[0])}
    # A tied model split over pipeline stages keeps a second copy of the embedding on the last stage.
    table.setdefault(LM_HEAD.megatron, Entry(LM_HEAD.megatron, EMBEDDING.hugging_face, LM_HEAD.rule))
    for name, parameter in local_parameters(chunks).items():
        if isinstance(chunks[0], ValueModel) and name == LM_HEAD.megatron:
            continue  # the critic's own, which no language model has
        _load(table[name], parameter, weights, chunks[0])


def _load(entry: Entry, parameter: Tensor, weights: Mapping[str, Tensor], model: PackedModel) -> None:
    group = tensor_group(entry, model.pg_collection)
    tensors = [weights[source] for source in entry.hugging_face]
    parameter.copy_(entry.rule.shards(tensors, group.size(), model.hf_config)[group.rank()])
