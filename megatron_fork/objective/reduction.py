"""Sums over all ranks of what each rank has summed."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_fork.distributed import collectives, device
from megatron_fork.distributed.collectives import Group


def global_sums(group: Group, *parts: Tensor) -> list[float]:
    """Each 0-d `part` summed over the ranks of `group`, in float64: one collective."""
    return collectives.all_reduce_sum(torch.stack([part.double() for part in parts]).to(device()), group).tolist()
