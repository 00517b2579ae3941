"""The weights of a model that is sharded over ranks, as Hugging Face tensors one after the other.

Parameters are sent in buckets: those on the same pipeline stage and the same expert rank are sent together. A rank holds one
bucket of every tensor rank at a time, never the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_fork.conversion.parameters import entries_of, local_parameters, tensor_group, unwrap_chunks
from megatron_fork.conversion.weight_files import Specification
from megatron_fork.distributed import collectives
from megatron_fork.models import Entry

BUCKET_BYTES = 256 * 2**20


class _Home(NamedTuple):
    """Where a parameter is, and its shard there; if it is on several expert ranks, the first of them."""

    stage: int
    expert_rank: int
    shard: Specification


@torch.no_grad()
def iter_hf_weights(
    model: nn.Module | Sequence[nn.Module], *, bucket_bytes: int = BUCKET_BYTES
) -> Iterator[tuple[str, Tensor]]:
    """Every Hugging Face tensor of the whole model, on every rank; all ranks must iterate together.

    Args:
        model: this rank's model, or its virtual pipeline stages in order.
        bucket_bytes: bytes of one tensor rank that are sent together; a larger parameter is sent alone.

    Yields:
        Name as in the published checkpoints, and tensor. It may share memory with the model.

    """
    chunks = unwrap_chunks(model)
    groups, config = chunks[0].pg_collection, chunks[0].hf_config
    parameters = local_parameters(chunks)
    device = next(iter(parameters.values())).device
    homes = _homes(parameters, groups)
    for bucket in _buckets(entries_of(chunks[0]), homes, bucket_bytes):
        for entry, shards in zip(bucket, _gathered(bucket, homes, parameters, groups, device), strict=True):
            yield from zip(entry.hugging_face, entry.rule.join(shards, config), strict=True)


def hf_specifications(model: nn.Module | Sequence[nn.Module]) -> dict[str, Specification]:
    """Dtype and shape of every tensor that `iter_hf_weights` yields; all ranks must call it."""
    chunks = unwrap_chunks(model)
    groups, config = chunks[0].pg_collection, chunks[0].hf_config
    homes = _homes(local_parameters(chunks), groups)
    found: dict[str, Specification] = {}
    for entry in entries_of(chunks[0]):
        shard = homes[entry.megatron].shard
        shards = [torch.empty(shard.shape, dtype=shard.dtype, device="meta")] * tensor_group(entry, groups).size()
        for name, tensor in zip(entry.hugging_face, entry.rule.join(shards, config), strict=True):
            found[name] = Specification(tensor.dtype, tuple(tensor.shape))
    return found


def _buckets(entries: Sequence[Entry], homes: Mapping[str, _Home], limit: int) -> Iterator[list[Entry]]:
    """Consecutive parameters with the same home and dtype, up to `limit` bytes."""
    bucket: list[Entry] = []
    filled, key = 0, None
    for entry in entries:
        home = homes[entry.megatron]
        its = (home.stage, home.expert_rank, home.shard.dtype, entry.expert is None)
        if bucket and (its != key or filled + home.shard.bytes > limit):
            yield bucket
            bucket, filled = [], 0
        bucket.append(entry)
        filled, key = filled + home.shard.bytes, its
    if bucket:
        yield bucket


def _gathered(
    bucket: Sequence[Entry],
    homes: Mapping[str, _Home],
    parameters: Mapping[str, Tensor],
    groups: Any,
    device: torch.device,
) -> Iterator[list[Tensor]]:
    """For each parameter of a bucket its shard of every tensor rank."""
    first, home = bucket[0], homes[bucket[0].megatron]
    across = tensor_group(first, groups)
    if across.size() == groups.pp.size() == groups.ep.size() == 1:
        yield from ([parameters[entry.megatron].detach()] for entry in bucket)
        return
    sizes = [torch.Size(homes[entry.megatron].shard.shape).numel() for entry in bucket]
    if all(entry.megatron in parameters for entry in bucket):
        flat = torch.cat([parameters[entry.megatron].detach().flatten() for entry in bucket])
    else:
        flat = torch.empty(sum(sizes), dtype=home.shard.dtype, device=device)
    if first.expert is not None and groups.pp.rank() == home.stage:
        collectives.broadcast(flat, dist.get_global_rank(groups.ep, home.expert_rank), groups.ep)
    collectives.broadcast(flat, dist.get_global_rank(groups.pp, home.stage), groups.pp)
    of_ranks = [shard.split(sizes) for shard in collectives.all_gather(flat, across)]
    for index, entry in enumerate(bucket):
        yield [parts[index].view(homes[entry.megatron].shard.shape) for parts in of_ranks]


def _homes(parameters: Mapping[str, Tensor], groups: Any) -> dict[str, _Home]:
    shards = {name: Specification(tensor.dtype, tuple(tensor.shape)) for name, tensor in parameters.items()}
    homes: dict[str, _Home] = {}
    in_stage: dict[str, tuple[int, Specification]] = {}
    for rank, found in enumerate(collectives.gather_objects(shards, groups.ep)):
        for name, shard in found.items():
            in_stage.setdefault(name, (rank, shard))
    for stage, located in enumerate(collectives.gather_objects(in_stage, groups.pp)):
        for name, (rank, shard) in located.items():
            homes.setdefault(name, _Home(stage, rank, shard))
    return homes
