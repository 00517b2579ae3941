"""The cuts that a scope makes: to which of them each token belongs, and which ranks make them together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_fork.distributed import collectives
from megatron_fork.distributed.collectives import Group
from megatron_fork.errors import SelectionError
from megatron_fork.selection.config import Config
from megatron_fork.selection.segmented import kth_largest_of_segments

_MOST_OVER_RANKS = 1 << 20  # a table of counts for each goes over the wire


@dataclass(frozen=True)
class Segments:
    """`number` segments of this rank's tokens, each cut over all ranks of `group`."""

    of_token: Tensor | None  # int32 [tokens]; None where there is one segment
    number: int
    group: Group

    def each(self, value: Tensor) -> Tensor:
        """`[segments] -> [tokens]`, or `[1]` where there is one segment, to be broadcast."""
        return value if self.of_token is None else value.index_select(0, self.of_token)

    def count(self, flags: Tensor) -> Tensor:
        """`[segments]` int64: the flagged tokens of each, over all ranks."""
        if self.of_token is None:
            counts = flags.count_nonzero()[None]
        else:
            flagged = self.of_token.index_select(0, flags.nonzero()[:, 0])
            counts = torch.bincount(flagged, minlength=self.number)
        return collectives.all_reduce_sum(counts, self.group)

    def among(self, places: Tensor) -> Segments:
        """The same segments with the tokens at `places` alone."""
        of_token = None if self.of_token is None else self.of_token.index_select(0, places)
        return Segments(of_token, self.number, self.group)

    def kth_largest(self, keys: Tensor, k: Tensor) -> Tensor:
        """`[segments]`: the k-th largest integer key of each, over all ranks."""
        return kth_largest_of_segments(keys, self.of_token, k, self.group)


def segments_of(
    shape: torch.Size, segments: Tensor | None, candidate: Tensor, config: Config, group: Group
) -> Segments:
    """The segments that `config.scope` cuts in; `candidate` is flat, `segments` of the tokens' `shape` or None."""
    wide = config.scope in ("minibatch", "microbatch_global")
    of_token = torch.zeros(0, dtype=torch.int64, device=candidate.device)
    if config.scope == "sequence" and segments is None:
        length = shape[-1] if shape else 1
        of_token = torch.arange(math.prod(shape[:-1]), device=candidate.device).repeat_interleave(length)
    elif config.scope != "minibatch" and segments is not None:
        of_token = segments.reshape(-1).to(torch.int64)
    if of_token.numel():
        of_token = of_token.where(candidate, 0)  # whatever stands at the others
    last_here, last_anywhere = _last(of_token, wide, group)
    last = last_anywhere if wide else last_here
    if last > candidate.numel() and not wide:
        # Numbers of sequences of the whole mini-batch: a table of them all may be far larger than what is here.
        present, of_token = of_token.unique(return_inverse=True)
        last = len(present) - 1
    return Segments(of_token.to(torch.int32) if last > 0 else None, last + 1, group if wide else None)


def _last(of_token: Tensor, wide: bool, group: Group) -> tuple[int, int]:
    """The last segment here and over all ranks; every rank refuses what one of them cannot use."""
    first_and_last = torch.tensor([0, 0], device=of_token.device)
    if of_token.numel():
        first_and_last = torch.stack([-of_token.min(), of_token.max()])
    last_here = int(first_and_last[1])
    # In all scopes alike, so that ranks whose scopes differ do not wait for each other.
    below_zero, last_anywhere = collectives.all_reduce_max(first_and_last, group).tolist()
    if below_zero > 0:
        raise SelectionError(f"segment {-below_zero} is negative", hint="number micro-batches or sequences from 0")
    if wide and last_anywhere >= _MOST_OVER_RANKS:
        raise SelectionError(
            f"segment {last_anywhere} is more than the {_MOST_OVER_RANKS} that ranks can cut together",
            hint="number the micro-batches from 0 without gaps",
        )
    return last_here, last_anywhere
