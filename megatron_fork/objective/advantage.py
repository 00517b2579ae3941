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
    # In float64 the mean of equal float32 rewards is that reward exactly, and their advantage exactly 0.
    rewards = rewards.to(torch.float32).to(torch.float64)
    _, group = torch.unique(group_ids, return_inverse=True)
    nothing = rewards.new_zeros(int(group.max()) + 1 if group.numel() else 0)
    count = nothing.index_add(0, group, torch.ones_like(rewards))
    centred = rewards - (nothing.index_add(0, group, rewards) / count)[group]
    others = (count - 1).clamp(min=1)
    if config.advantage == "rloo":
        centred = centred * (count / others)[group]
    elif config.advantage == "grpo":
        deviation = (nothing.index_add(0, group, centred.square()) / others).sqrt()
        centred = centred / (deviation[group] + _EPSILON)
    return centred.to(torch.float32)


def overlong_penalty(lengths: Tensor, config: Config) -> Tensor:
    """DAPO's soft punishment, to be added to the reward: float32 `[responses]`, from 0 down to `-factor`.

    0 up to `max_response - cache` tokens, then linear, `-factor` at `max_response` and beyond (arXiv 2503.14476, Eq. 13).
    """
    overlong = config.overlong
    free = overlong.max_response - overlong.cache
    return -overlong.factor * ((lengths.to(torch.float32) - free) / overlong.cache).clamp(0.0, 1.0)
