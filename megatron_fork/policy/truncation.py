"""The kept sets of a share's tokens, which the engine reported, for the policy's softmax."""

from __future__ import annotations

from array import array

import numpy as np
import torch
from torch import Tensor

from megatron_fork.errors import RolloutError
from megatron_fork.experience import Batch, Trajectory
from megatron_fork.vocab_parallel import KeptSets


def kept_sets_of(batch: Batch) -> KeptSets | None:
    """A set for each response token, in the batch's order; None if no sequence has any, so that the softmax is the full one.

    Raises `RolloutError` if the engine reported the sets of some tokens only.
    """
    kept = [each.kept if isinstance(each, Trajectory) else None for each in batch.sequences]
    if all(each is None for each in kept):
        return None
    for sequence, each in zip(batch.sequences, kept, strict=True):
        if each is None or len(each) != len(sequence.response):
            raise RolloutError(
                f"the engine reports what {0 if each is None else len(each)} tokens of response {sequence.number} were drawn "
                f"from, which has {len(sequence.response)}",
                hint="set rollout.replay_sampling_mask=false and rollout.mismatch_limit=.inf, or use an engine that reports it",
            )
    return KeptSets(
        torch.cat([_int32(each.ids) for each in kept if each is not None]),
        torch.cat([_int32(each.counts) for each in kept if each is not None]).long(),
    )


def _int32(numbers: array[int]) -> Tensor:
    return torch.from_numpy(np.array(numbers, dtype=np.int32))
