"""Floats as integers of the same order, and the refusal of values that have no order."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_fork.distributed import collectives
from megatron_fork.distributed.collectives import Group
from megatron_fork.errors import SelectionError


def block_size(device: torch.device) -> int:
    """How many values to handle at a time: what stays in a CPU's cache between steps, or hides the launches elsewhere."""
    return 1 << 16 if device.type == "cpu" else 1 << 24


def ordered_keys(values: Tensor) -> Tensor:
    """int32 keys, new memory, that order as the values do in float32; -0.0 comes right below 0.0."""
    bits = values.to(torch.float32).view(torch.int32)
    # A negative float's magnitude grows with its low 31 bits, so these are turned over; one new tensor, the rest in place.
    return (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits)


def float_of_key(key: int) -> float:
    """The value of a key; 0.0 for that of -0.0 too."""
    bits = key if key >= 0 else key ^ 0x7FFFFFFF
    return torch.tensor(bits, dtype=torch.int32).view(torch.float32).item() + 0.0


def floats_of_keys(keys: Tensor) -> Tensor:
    """The float32 value of each int32 key: `ordered_keys` is its own inverse."""
    return ordered_keys(keys.view(torch.float32)).view(torch.float32)


def refuse_nan(values: Tensor, group: Group) -> None:
    """Every rank learns of a NaN anywhere, so that all raise and none is left waiting."""
    found = torch.zeros(collectives.size(group), dtype=torch.int64, device=values.device)
    # The maximum of values with a NaN among them is NaN: one sweep without a temporary, where `isnan` would make flags.
    if values.numel() and values.max().isnan():
        found[collectives.rank(group)] = 1 + values.isnan().nonzero()[0, 0]
    collectives.all_reduce_max(found, group)
    if found.any():
        rank = int(found.nonzero()[0, 0])
        raise SelectionError(
            f"value {int(found[rank]) - 1} of rank {rank} is NaN",
            hint="look for a diverged policy: logits that are not finite",
        )
