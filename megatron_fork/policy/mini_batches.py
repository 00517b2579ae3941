"""A rollout batch cut into mini-batches, one optimizer step each."""

from __future__ import annotations

import random
from collections.abc import Sequence

from megatron_fork.experience import Batch, Trajectory


def split_into_mini_batches(
    trajectories: Sequence[Trajectory], groups_each: int, *, group_size: int, seed: int
) -> list[Batch]:
    """Shuffle whole groups into mini-batches of `groups_each`; a short remainder is a mini-batch of its own."""
    groups = [trajectories[first : first + group_size] for first in range(0, len(trajectories), group_size)]
    random.Random(seed).shuffle(groups)
    chunks = [groups[first : first + groups_each] for first in range(0, len(groups), groups_each)]
    return [Batch.of_trajectories([trajectory for group in chunk for trajectory in group]) for chunk in chunks]
