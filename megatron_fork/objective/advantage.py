"""Advantages of whole responses from the rewards of their group, and DAPO's soft punishment of overlong ones."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_fork.distributed import collectives, device
from megatron_fork.distributed.collectives import Group
from megatron_fork.errors import ObjectiveError
from megatron_fork.objective.config import ObjectiveConfig
from megatron_fork.objective.whitening import EPSILON, whiten


def group_advantages(rewards: Tensor, group_ids: Tensor, config: ObjectiveConfig, *, group: Group = None) -> Tensor:
    """Advantage of each response within its group.

    Args:
        rewards: `[responses]` float.
        group_ids: `[responses]` int64, equal for responses to the same prompt; a group lives on one rank.
        config: `advantage` names the estimator.
        group: the ranks whose responses make up the batch that reinforce_pp whitens over; None where each rank
            holds all of them.

    Returns:
        float32 `[responses]`. The spread of a group is the unbiased standard deviation; a group of one has advantage 0.

    """
    if rewards.shape != group_ids.shape:
        raise ObjectiveError(
            f"rewards has shape {list(rewards.shape)}, group_ids {list(group_ids.shape)}", hint="one group id a reward"
        )
    if config.advantage == "gae":
        raise ObjectiveError(
            "objective.advantage=gae does not compare the responses of a group",
            hint="it needs a critic and generalized_advantages; without one choose grpo",
        )
    _refuse_infinite(rewards, group)
    # In float64 the mean of equal float32 rewards is that reward exactly, and their advantage exactly 0.
    rewards = rewards.to(torch.float32).to(torch.float64)
    _, place = torch.unique(group_ids, return_inverse=True)
    nothing = rewards.new_zeros(int(place.max()) + 1 if place.numel() else 0)
    count = nothing.index_add(0, place, torch.ones_like(rewards))
    centred = rewards - (nothing.index_add(0, place, rewards) / count)[place]
    others = (count - 1).clamp(min=1)
    if config.advantage == "rloo":
        centred = centred * (count / others)[place]
    elif config.advantage == "grpo":
        deviation = (nothing.index_add(0, place, centred.square()) / others).sqrt()
        centred = centred / (deviation[place] + EPSILON)
    elif config.advantage == "reinforce_pp":
        return whiten(centred, torch.ones_like(centred, dtype=torch.bool), group)
    return centred.to(torch.float32)


def _refuse_infinite(rewards: Tensor, group: Group) -> None:
    """Every rank learns of a bad reward anywhere, so that all raise and none is left waiting."""
    bad = (~torch.isfinite(rewards)).nonzero()
    found = collectives.all_reduce_max(torch.tensor(len(bad), device=device()), group)
    if len(bad):
        place = int(bad[0, 0])
        raise ObjectiveError(
            f"reward {place} is {rewards[place].item()}", hint="the verifier must return a finite number"
        )
    if found:
        raise ObjectiveError(
            "a reward on another rank is not finite", hint="its message names it; the verifier must return a number"
        )


def overlong_penalty(lengths: Tensor, config: ObjectiveConfig) -> Tensor:
    """DAPO's soft punishment, to be added to the reward: float32 `[responses]`, from 0 down to `-factor`.

    0 up to `max_response - cache` tokens, then linear, `-factor` at `max_response` and beyond (arXiv 2503.14476, Eq. 13).
    """
    overlong = config.overlong
    free = overlong.max_response - overlong.cache
    return -overlong.factor * ((lengths.to(torch.float32) - free) / overlong.cache).clamp(0.0, 1.0)
