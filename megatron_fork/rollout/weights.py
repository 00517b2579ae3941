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


def buckets(weights: Iterable[tuple[str, Tensor]], limit: int, device: torch.device) -> Iterator[Bucket]:
    """Copies on `device` in lists of at most `limit` bytes; a larger tensor comes alone."""
    bucket: Bucket = []
    size = 0
    for name, tensor in weights:
        if bucket and size + tensor.nbytes > limit:
            yield bucket
            bucket, size = [], 0
        # A copy: the iterator may give a live parameter, or a buffer that it fills again.
        bucket.append((name, torch.empty_like(tensor, device=device).copy_(tensor.detach()).contiguous()))
        size += tensor.nbytes
    if bucket:
        yield bucket
