"""Weights in pieces of bounded size: neither rank 0 nor a server ever holds a second model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

Bucket = list[tuple[str, Tensor]]


def buckets(weights: Iterable[tuple[str, Tensor]], limit: int, device: torch.device) -> Iterator[Bucket]:
    """Copies on `device` in lists of at most `limit` bytes; a larger tensor comes alone."""
    bucket: Bucket = []
    size = 0
    for name, tensor in weights:
        if bucket and size + tensor.nbytes > limit:
            yield bucket
            bucket, size = [], 0
        # A copy: what the iterator hands out may be a live parameter, or a buffer that it fills again.
        bucket.append((name, torch.empty_like(tensor, device=device).copy_(tensor.detach()).contiguous()))
        size += tensor.nbytes
    if bucket:
        yield bucket
