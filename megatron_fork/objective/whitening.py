"""Advantages of zero mean and unit variance over all ranks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from megatron_fork.distributed.collectives import Group
from megatron_fork.errors import ObjectiveError
from megatron_fork.objective.checks import refuse_other_shapes, refuse_other_than_flags
from megatron_fork.objective.reduction import global_sums

# Keeps advantages without spread finite; the same value as in the authors' code.
EPSILON = 1e-6


def whiten(advantage: Tensor, mask: Tensor, group: Group = None) -> Tensor:
    """(A - mean) / std with the exact mean and unbiased deviation of all marked advantages of all ranks.

    Args:
        advantage: float `[...]`, of tokens or of responses.
        mask: bool `[...]`; unmarked values enter nothing and come back as 0.
        group: the ranks; None for this process alone.

    Returns:
        float32 `[...]`. Equal advantages, and a single one, become 0. Nothing marked anywhere is legal.

    """
    refuse_other_shapes("advantage", advantage, {"mask": mask})
    refuse_other_than_flags({"mask": mask})
    # In float64 the mean of equal float32 values is that value exactly, and two passes lose nothing to cancellation.
    marked = advantage[mask].to(torch.float64)
    total, count = global_sums(group, marked.sum(), mask.sum())
    if not math.isfinite(total):
        raise ObjectiveError("advantage holds a value that is not finite, on some rank", hint="check the rewards")
    centred = marked - total / max(count, 1.0)
    (squares,) = global_sums(group, centred.square().sum())
    deviation = math.sqrt(squares / max(count - 1.0, 1.0))
    whitened = torch.zeros(advantage.shape, dtype=torch.float32, device=advantage.device)
    whitened[mask] = (centred / (deviation + EPSILON)).to(torch.float32)
    return whitened
