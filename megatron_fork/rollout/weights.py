"""The policy's weights for an engine, as often as it asks and in buckets of bounded size.

Neither rank 0 nor a server ever holds a second copy of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_fork.conversion import iter_hf_weights
from megatron_fork.policy import Policy

Bucket = list[tuple[str, Tensor]]


@dataclass(frozen=True)
class PolicyWeights:
    """Hugging Face names and whole tensors, gathered again at every iteration, which all ranks make together."""

    policy: Policy

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter_hf_weights(self.policy.model)


def buckets(
    weights: Iterable[tuple[str, Tensor]], limit: int, device: torch.device, *, pieces: list[Tensor] | None = None
) -> Iterator[Bucket]:
    """Copies on `device` in lists of at most `limit` bytes; a larger tensor comes alone.

    The tensors of a bucket lie one after another in one piece of memory, so that it is one message: see `packed`. Given two
    `pieces` (uint8, of any length), it uses these in turn, and puts longer ones in their place where they are too short: a
    bucket is overwritten when the second after it is asked for.
    """
    bucket: Bucket = []
    size = 0
    for name, tensor in weights:
        # Where another dtype would begin at a place that is none for it, another bucket begins.
        if bucket and (size + tensor.nbytes > limit or size % tensor.itemsize):
            yield bucket
            bucket, size = [], 0
        if not bucket:
            memory = _next_piece(max(limit, tensor.nbytes), device, pieces)
        # A copy: the iterator may give a live parameter, or a buffer that it fills again.
        place = memory[size : size + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        bucket.append((name, place.copy_(tensor.detach())))
        size += tensor.nbytes
    if bucket:
        yield bucket


def _next_piece(size: int, device: torch.device, pieces: list[Tensor] | None) -> Tensor:
    if pieces is None:
        return torch.empty(size, dtype=torch.uint8, device=device)
    pieces.reverse()
    if len(pieces[0]) < size:
        pieces[0] = torch.empty(0, dtype=torch.uint8, device=device)  # the old one goes before the new one comes
        pieces[0] = torch.empty(size, dtype=torch.uint8, device=device)
    return pieces[0]


def packed(bucket: Bucket) -> Tensor:
    """`[bytes]` uint8: the tensors one after another, without a copy where `buckets` made them."""
    tensors = [tensor for _, tensor in bucket]
    first = tensors[0]
    storage, place = first.untyped_storage(), first.data_ptr()
    for tensor in tensors:
        if tensor.untyped_storage().data_ptr() != storage.data_ptr() or tensor.data_ptr() != place:
            return torch.cat([tensor.detach().contiguous().flatten().view(torch.uint8) for tensor in tensors])
        place += tensor.nbytes
    start = first.storage_offset() * first.itemsize
    size = sum(tensor.nbytes for tensor in tensors)
    return torch.empty(0, dtype=torch.uint8, device=first.device).set_(storage, start, (size,), (1,))
