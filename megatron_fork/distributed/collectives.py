"""The collectives that the rooms use, each a no-op on a group of one.

`group=None` means this process alone, so that a function can be called without any process group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup | None


def size(group: Group) -> int:
    """Ranks in `group`; 1 for None."""
    return 1 if group is None else group.size()


def rank(group: Group) -> int:
    """This process's place in `group`; 0 for None."""
    return 0 if group is None else group.rank()


def all_reduce_sum(tensor: Tensor, group: Group) -> Tensor:
    """Sum `tensor` over `group`, in place; returns it."""
    if size(group) > 1:
        dist.all_reduce(tensor, group=group)
    return tensor


def all_reduce_max(tensor: Tensor, group: Group) -> Tensor:
    """Maximum of `tensor` over `group`, in place; returns it."""
    if size(group) > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=group)
    return tensor


def all_gather(tensor: Tensor, group: Group) -> Tensor:
    """Stack the same-shaped `tensor` of every rank: `[...] -> [size, ...]`."""
    if size(group) == 1:
        return tensor.unsqueeze(0)
    parts = [torch.empty_like(tensor) for _ in range(size(group))]
    dist.all_gather(parts, tensor.contiguous(), group=group)
    return torch.stack(parts)


def broadcast(tensor: Tensor, source: int, group: Group) -> Tensor:
    """Overwrite `tensor` with global rank `source`'s, in place; returns it."""
    if size(group) > 1:
        dist.broadcast(tensor, src=source, group=group)
    return tensor


def gather_objects(value: Any, group: Group) -> list[Any]:
    """Every rank's picklable `value`, in rank order, on every rank."""
    if size(group) == 1:
        return [value]
    values: list[Any] = [None] * size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def gather_objects_to_first(value: Any, group: Group) -> list[Any]:
    """Every rank's picklable `value`, in rank order, on the first rank; nothing on the others."""
    if group is None or size(group) == 1:
        return [value]
    values: list[Any] | None = [None] * size(group) if rank(group) == 0 else None
    dist.gather_object(value, values, dst=dist.get_global_rank(group, 0), group=group)
    return values or []


def broadcast_object(value: Any, group: Group) -> Any:
    """The first rank's picklable `value`, on every rank."""
    if group is None or size(group) == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=dist.get_global_rank(group, 0), group=group)
    return values[0]


@dataclass(frozen=True)
class RingExchange:
    """A tensor that is being sent to the next rank of a group, and one that is being received from the previous rank."""

    sent: Tensor  # kept unchanged until it has been sent
    arriving: Tensor
    works: Sequence[dist.Work]

    def wait(self) -> Tensor:
        """Wait for the previous rank's tensor and return it."""
        for work in self.works:
            work.wait()
        return self.arriving


def ring_exchange(tensor: Tensor, group: Group) -> RingExchange:
    """Start to send `tensor` to the next rank of `group` and to receive one of the same shape from the previous rank.

    The next rank of the last is the first. Exchanges between the same ranks complete in the order in which they start.
    """
    if size(group) == 1:
        return RingExchange(tensor, tensor, ())
    tensor = tensor.contiguous()
    arriving = torch.empty_like(tensor)
    after, before = (rank(group) + 1) % size(group), (rank(group) - 1) % size(group)
    operations = [
        dist.P2POp(dist.isend, tensor, group=group, group_peer=after),
        dist.P2POp(dist.irecv, arriving, group=group, group_peer=before),
    ]
    return RingExchange(tensor, arriving, dist.batch_isend_irecv(operations))
