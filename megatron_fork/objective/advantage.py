"""Advantages of whole responses from the rewards of their group, and DAPO's soft punishment of overlong ones."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_fork.errors import ObjectiveError
from megatron_fork.objective.config import Config

# Keeps groups without spread finite; the same value as in the authors' code.
_EPSILON = 1e-6


def group_advantages(rewards: Tensor, group_ids: Tensor, config: Config) -> Tensor:
    """Advantage of each response within its group.

    Args:
        rewards: `[responses]` float.
        group_ids: `[responses]` int64, equal for responses to the same prompt.
        config: `advantage` names the estimator.

    Returns:
        float32 `[responses]`. The spread of a group is the unbiased standard deviation; a group of one has advantage 0.

    """
    if rewards.shape != group_ids.shape:
        raise ObjectiveError(
            f"rewards has shape {list(rewards.shape)}, group_ids {list(group_ids.shape)}", hint="one group id a reward"
        )
    if not torch.isfinite(rewards).all():
        place = int((~torch.isfinite(rewards)).nonzero()[0, 0])
        raise ObjectiveError(
            f"reward {place} is {rewards[place].item()}", hint="the verifier must return a finite number"
        )
    rewards = rewards.to(torch.float32)
    _, group = torch.unique(group_ids, return_inverse=True)
    groups = int(group.max()) + 1 if group.numel() else 0
    count = torch.zeros(groups).index_add_(0, group, torch.ones_like(rewards))
    mean = torch.zeros(groups).index_add_(0, group, rewards) / count
    centred = rewards - mean[group]
    if config.advantage == "dr_grpo":
        return centred
    others = (count - 1).clamp(min=1)
    if config.advantage == "rloo":
        return centred * (count / others)[group]
    deviation = (torch.zeros(groups).index_add_(0, group, centred.square()) / others).sqrt()
    return centred / (deviation[group] + _EPSILON)


def overlong_penalty(lengths: Tensor, config: Config) -> Tensor:
    """DAPO's soft punishment, to be added to the reward: float32 `[responses]`, from 0 down to `-factor`.

    0 up to `max_response - cache` tokens, then linear, `-factor` at `max_response` and beyond (arXiv 2503.14476, Eq. 13).
    """
    overlong = config.overlong
    free = overlong.max_response - overlong.cache
    return -overlong.factor * ((lengths.to(torch.float32) - free) / overlong.cache).clamp(0.0, 1.0)
