"""Prepares the trajectories of a step for the learner: advantages within each prompt group, then shuffled mini-batches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from megatron_fork import objective
from megatron_fork.experience import Batch, Trajectory


def with_advantages(
    trajectories: Sequence[Trajectory], config: objective.ObjectiveConfig, *, group_size: int
) -> list[Trajectory]:
    """The trajectories with their advantages; those of a prompt group must be consecutive.

    The advantage is the reward plus overlong penalty, compared within the group; with a critic it is the sum itself, since
    advantages are then estimated per token later.
    """
    if not trajectories:
        return []
    rewards = shaped_rewards(trajectories, config)
    groups = torch.arange(len(trajectories)) // group_size
    critic = config.advantage == "gae"
    advantages = rewards if critic else objective.group_advantages(rewards, groups, config)
    return [replace(t, advantage=advantage) for t, advantage in zip(trajectories, advantages.tolist(), strict=True)]


def shaped_rewards(trajectories: Sequence[Trajectory], config: objective.ObjectiveConfig) -> Tensor:
    """Rewards with the overlong penalty, `[trajectories]`."""
    lengths = torch.tensor([len(trajectory.response) for trajectory in trajectories])
    rewards = torch.tensor([trajectory.reward for trajectory in trajectories])
    return rewards + objective.overlong_penalty(lengths, config)


def groups_with_signal(
    trajectories: Sequence[Trajectory], config: objective.ObjectiveConfig, *, group_size: int
) -> int:
    """The number of groups whose rewards differ; with a critic every group counts."""
    if not trajectories or config.advantage == "gae":
        return len(trajectories) // group_size
    rewards = shaped_rewards(trajectories, config).view(-1, group_size)
    return int((rewards != rewards[:, :1]).any(dim=1).sum())


def split_into_mini_batches(
    trajectories: Sequence[Trajectory], groups_each: int, *, group_size: int, seed: int
) -> list[Batch]:
    """Shuffle whole groups into mini-batches of `groups_each`; the last one may be smaller."""
    groups = [trajectories[first : first + group_size] for first in range(0, len(trajectories), group_size)]
    random.Random(seed).shuffle(groups)
    chunks = [groups[first : first + groups_each] for first in range(0, len(groups), groups_each)]
    return [Batch.of_trajectories([trajectory for group in chunk for trajectory in group]) for chunk in chunks]
