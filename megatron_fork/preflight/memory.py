"""Whether weights, gradients and optimizer fit the memory of a rank, here or on the nodes that the recipe names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from megatron_fork import distributed
from megatron_fork.cluster import ClusterConfig, host_memory
from megatron_fork.config import RunConfig
from megatron_fork.errors import size
from megatron_fork.preflight.findings import Finding


@dataclass(frozen=True)
class Memory:
    """Bytes that a rank has, and where."""

    bytes: float
    where: str
    is_here: bool


def memory_of_rank(config: RunConfig, *, ranks: int) -> Memory:
    """Of this machine where the run's ranks are here, or one rank is all; otherwise of the GPUs that the recipe names."""
    cluster = config.cluster
    if distributed.is_launched() or (ranks == 1 and cluster == ClusterConfig()):
        return here()
    if cluster.gpus_per_node:
        return Memory(
            cluster.gpu_memory * 2**30, f"a {cluster.gpu} of cluster.gpu_memory={cluster.gpu_memory:g}", False
        )
    return Memory(float("inf"), "nodes without GPUs, whose memory is not known here", False)


def here() -> Memory:
    """What a rank on this machine has: its GPU, or its part of the host."""
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(distributed.device())
        return Memory(float(found.total_memory), f"this {found.name}", True)
    place = distributed.launch()
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if place else 1
    shared = f"a rank's part of this machine's for {beside}" if beside > 1 else "this machine's"
    return Memory(host_memory().total / beside, shared, True)


def memory(config: RunConfig, needed: float, *, ranks: int) -> Iterator[Finding]:
    """`needed`: bytes on the fullest of `ranks` ranks before any activation."""
    found = memory_of_rank(config, ranks=ranks)
    has = f"of {size(found.bytes)}" if found.bytes < float("inf") else "on each"
    fits = needed <= found.bytes
    yield Finding(
        "memory of a rank",
        f"{size(needed)} {has} before activations",
        found.where
        if fits
        else f"{found.where}: raise parallel.tensor or parallel.pipeline, set optimizer.distributed=true or "
        "optimizer.offload, or take policy.precision=bf16",
        "ok" if fits else "fix",
    )
    yield _nodes(config, ranks)


def _nodes(config: RunConfig, ranks: int) -> Finding:
    """The nodes that the recipe names against what is here; a run takes what it is started with."""
    cluster = config.cluster
    if cluster == ClusterConfig():
        return Finding("nodes of the recipe", "cluster.* is not set")
    meant = f"{cluster.nodes} x {cluster.gpus_per_node} {cluster.gpu}" if cluster.gpus_per_node else f"{cluster.nodes}"
    meant = f"{meant}: {cluster.ranks} ranks, {cluster.servers} servers"
    if not distributed.is_launched():
        return Finding("nodes of the recipe", meant, "not compared: no launcher started this process", "note")
    differs = [] if ranks == cluster.ranks else [f"{ranks} ranks are here"]
    name = torch.cuda.get_device_name(distributed.device()) if torch.cuda.is_available() else "no GPU"
    if bool(cluster.gpus_per_node) != torch.cuda.is_available() or (cluster.gpus_per_node and cluster.gpu not in name):
        differs.append(f"{name} here")
    return Finding("nodes of the recipe", meant, ", ".join(differs), "note" if differs else "ok")
