"""How many logits may exist at a time on a device."""

from __future__ import annotations

import functools

import torch

from megatron_fork.distributed import collectives
from megatron_fork.distributed.collectives import Group
from megatron_fork.vocab_parallel.config import VocabParallelConfig


def logits_bytes(config: VocabParallelConfig, device: torch.device, group: Group) -> int:
    """Bytes of float32 logits that may exist at a time: `chunk_mib`, or on a GPU at most a quarter of what is free.

    Free memory is looked at once in a process, at the first call, and ranks that share a vocabulary take what the
    fullest of them has: they must cut the rows at the same places.
    """
    chosen = config.chunk_bytes(device.type)
    if config.chunk_mib or device.type != "cuda":
        return chosen
    return min(chosen, _quarter_of_free(device, group))


@functools.cache
def _quarter_of_free(device: torch.device, group: Group) -> int:
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if collectives.size(group) > 1:
        free = -int(collectives.all_reduce_max(torch.tensor(-free, dtype=torch.int64, device=device), group))
    return max(1 << 20, free >> 2)
