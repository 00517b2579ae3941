"""Hugging Face <-> Megatron weights, both directions, for any layout of the model over the ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_fork.checkpoint.parameters import local_parameters, unwrap_chunks
from megatron_fork.checkpoint.published import PublishedWeights
from megatron_fork.checkpoint.table import EMBEDDING, LM_HEAD, Entry, backbone_entries
from megatron_fork.distributed import collectives
from megatron_fork.errors import CheckpointError
from megatron_fork.models import PackedModel, ValueModel


def entries(model: PackedModel) -> list[Entry]:
    """Every parameter of the whole model that a Hugging Face checkpoint has: tied models and critics have no LM head."""
    has_head = not isinstance(model, ValueModel) and not model.hf_config.tie_word_embeddings
    return [*backbone_entries(model.hf_config), *([LM_HEAD] if has_head else [])]


@torch.no_grad()
def load_weights(model: nn.Module | Sequence[nn.Module], weights: Mapping[str, Tensor]) -> None:
    """Fill this rank's parameters from Hugging Face tensors by name; raises `CheckpointError` on a missing one.

    Args:
        model: this rank's model, or its virtual pipeline stages in order.
        weights: names of the published checkpoints; experts may be fused as transformers holds them in memory.

    """
    chunks = unwrap_chunks(model)
    weights = PublishedWeights(weights)
    table = {entry.megatron: entry for entry in entries(chunks[0])}
    # A tied model split over pipeline stages keeps a second copy of the embedding on the last stage.
    table.setdefault(LM_HEAD.megatron, Entry(LM_HEAD.megatron, EMBEDDING.hugging_face, LM_HEAD.rule))
    for name, parameter in local_parameters(chunks).items():
        if isinstance(chunks[0], ValueModel) and name == LM_HEAD.megatron:
            continue  # the critic's own, which no language model has
        _load(table[name], parameter, weights, chunks[0])


def _load(entry: Entry, parameter: Tensor, weights: Mapping[str, Tensor], model: PackedModel) -> None:
    config, group = model.hf_config, _tensor_group(entry, model.pg_collection)
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
def iter_hf_weights(model: nn.Module | Sequence[nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Every Hugging Face tensor of the whole model, one parameter at a time, on every rank.

    All ranks must iterate together: each parameter is broadcast from the expert rank and the pipeline stage that hold it,
    then gathered over the tensor ranks. Names are those of the published checkpoints.
    """
    chunks = unwrap_chunks(model)
    first = chunks[0]
    groups = first.pg_collection
    parameters = local_parameters(chunks)
    device = next(iter(parameters.values())).device
    homes = _homes(parameters, groups)
    for entry in entries(first):
        home = homes[entry.megatron]
        if entry.megatron in parameters:
            shard = parameters[entry.megatron].detach().contiguous()
        else:
            shard = torch.empty(home.shape, dtype=first.config.params_dtype, device=device)
        if entry.expert is not None and groups.pp.rank() == home.stage:
            collectives.broadcast(shard, dist.get_global_rank(groups.ep, home.expert_rank), groups.ep)
        collectives.broadcast(shard, dist.get_global_rank(groups.pp, home.stage), groups.pp)
        shards = collectives.all_gather(shard, _tensor_group(entry, groups))
        yield from zip(entry.hugging_face, entry.rule.join(list(shards), first.hf_config), strict=True)


class _Home(NamedTuple):
    """Where a parameter lies, and the shape of its shard there."""

    stage: int
    expert_rank: int
    shape: tuple[int, ...]


def _homes(parameters: Mapping[str, Tensor], groups: Any) -> dict[str, _Home]:
    """The home of every parameter of the whole model; of those on several expert ranks, the first's."""
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    homes: dict[str, _Home] = {}
    in_stage: dict[str, tuple[int, tuple[int, ...]]] = {}
    for rank, found in enumerate(collectives.gather_objects(shapes, groups.ep)):
        for name, shape in found.items():
            in_stage.setdefault(name, (rank, shape))
    for stage, located in enumerate(collectives.gather_objects(in_stage, groups.pp)):
        for name, (rank, shape) in located.items():
            homes.setdefault(name, _Home(stage, rank, shape))
    return homes


def _tensor_group(entry: Entry, groups: Any) -> dist.ProcessGroup:
    """The ranks over which a parameter is cut."""
    group: dist.ProcessGroup = groups.tp if entry.expert is None else groups.expt_tp
    return group
