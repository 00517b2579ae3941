"""Describes this rank's share of a mini-batch to the routers of a mixture of experts."""

from __future__ import annotations

import torch

from megatron_fork.distributed import collectives, device
from megatron_fork.errors import RolloutError
from megatron_fork.experience import Batch, Trajectory
from megatron_fork.models import Routing


def describe(routing: Routing, batch: Batch, group: collectives.Group) -> None:
    """Fill in `routing` for the share `batch`; collective over the data ranks, `group`."""
    where = device()
    lengths = torch.tensor([sequence.length for sequence in batch.sequences], dtype=torch.long, device=where)
    routing.sequence_n = torch.arange(len(lengths), device=where).repeat_interleave(lengths)
    routing.length_s = lengths.float()
    routing.balance = 0.0
    if routing.config.balance:
        count = torch.tensor(len(lengths), device=where)
        routing.sequences = max(1, int(collectives.all_reduce_sum(count, group)))
    routing.chosen_nlk = _chosen_by_the_engine(batch) if routing.config.replay else None


def _chosen_by_the_engine(batch: Batch) -> torch.Tensor | None:
    """The engine's experts `[tokens, layers, k]`; None for demonstrations, which no engine drew."""
    parts = []
    for sequence in batch.sequences:
        if not isinstance(sequence, Trajectory):
            return None
        if sequence.experts is None or len(sequence.experts) != sequence.length:
            raise RolloutError(
                f"the engine reports experts of {0 if sequence.experts is None else len(sequence.experts)} tokens of "
                f"response {sequence.number}, which has {sequence.length}",
                hint="set experts.replay=false, or use an engine that reports its routing",
            )
        parts.append(sequence.experts)
    return torch.cat(parts).to(device()) if parts else None
