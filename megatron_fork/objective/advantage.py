"""Advantages of whole responses from their group's rewards, or of tokens from a critic's values; DAPO's overlong penalty.

Generalised advantage estimation follows arXiv 1506.02438, Eq. 16.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from megatron_fork.distributed import collectives, device
from megatron_fork.distributed.collectives import Group
from megatron_fork.errors import ObjectiveError
from megatron_fork.objective.averaging import global_sums
from megatron_fork.objective.config import ObjectiveConfig
from megatron_fork.objective.selected_tokens import refuse_other_shapes, refuse_other_than_flags

# Keeps advantages finite if all rewards are equal; the same value as in the authors' code.
EPSILON = 1e-6


def group_advantages(rewards: Tensor, group_ids: Tensor, config: ObjectiveConfig, *, group: Group = None) -> Tensor:
    """Advantage of each response within its group.

    Args:
        rewards: `[responses]` float.
        group_ids: `[responses]` int64, equal for responses to the same prompt; a group must be on one rank.
        config: `advantage` names the estimator.
        group: the ranks whose responses form the batch that reinforce_pp whitens over; None if each rank has all of
            them.

    Returns:
        float32 `[responses]`. The spread of a group is the unbiased standard deviation; a group of one has advantage 0.

    """
    if rewards.shape != group_ids.shape:
        raise ObjectiveError(
            f"rewards has shape {list(rewards.shape)}, group_ids {list(group_ids.shape)}",
            hint="give one group id per reward",
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
    """Raise `ObjectiveError` on every rank if any rank has a bad reward, so that none is left waiting."""
    bad = (~torch.isfinite(rewards)).nonzero()
    found = collectives.all_reduce_max(torch.tensor(len(bad), device=device()), group)
    if len(bad):
        place = int(bad[0, 0])
        raise ObjectiveError(
            f"reward {place} is {rewards[place].item()}", hint="the verifier must return a finite number"
        )
    if found:
        raise ObjectiveError(
            "a reward on another rank is not finite",
            hint="that rank's message names it; the verifier must return a number",
        )


def overlong_penalty(lengths: Tensor, config: ObjectiveConfig) -> Tensor:
    """DAPO's overlong penalty, to be added to the reward: float32 `[responses]`, from 0 down to `-factor`.

    0 up to `max_response - cache` tokens, then linear, `-factor` at `max_response` and beyond (arXiv 2503.14476, Eq. 13).
    """
    overlong = config.overlong
    free = overlong.max_response - overlong.cache
    return -overlong.factor * ((lengths.to(torch.float32) - free) / overlong.cache).clamp(0.0, 1.0)


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


def generalized_advantages(
    token_rewards: Tensor, values: Tensor, sequence: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """A_t = sum over i of (gamma lam)^i delta_(t+i) within a response, delta_t = r_t + gamma V_(t+1) - V_t.

    Args:
        token_rewards: float `[tokens]`; an outcome reward is at the last token of its response.
        values: float `[tokens]`, the critic's value of the state in which the token was sampled.
        sequence: int64 `[tokens]`, the response of each token; the tokens of a response must be consecutive.
        gamma: discount.
        lam: decay of the estimator.

    Returns:
        float32 `[tokens]` each: advantages, and the returns A + V that the critic learns. V is 0 after the end of a
        response, whether it was truncated or not.

    """
    for name, column in {"values": values, "sequence": sequence}.items():
        if column.shape != token_rewards.shape or column.dim() != 1:
            raise ObjectiveError(
                f"{name} has shape {list(column.shape)}, token_rewards {list(token_rewards.shape)}",
                hint="give flat columns with one value per token",
            )
    for name, column in {"token_rewards": token_rewards, "values": values}.items():
        if not torch.isfinite(column).all():
            raise ObjectiveError(f"{name} holds a value that is not finite", hint="check the rewards and the critic")
    _, run, lengths = torch.unique_consecutive(sequence, return_inverse=True, return_counts=True)
    if len(lengths) != len(torch.unique(sequence)):
        raise ObjectiveError(
            f"sequence has {len(lengths)} runs of {len(torch.unique(sequence))} responses",
            hint="the tokens of a response must be consecutive and in order",
        )
    value = values.to(torch.float64)
    advantage = token_rewards.to(torch.float64) + gamma * _ahead(value, run, 1) - value
    # Doubling: if each place holds the discounted sum of `step` deltas, adding the sum `step` places ahead gives one of
    # 2 step. This takes log2(longest) sweeps over the flat column, without padding.
    step = 1
    while step < (int(lengths.max()) if len(lengths) else 0):
        advantage = advantage + (gamma * lam) ** step * _ahead(advantage, run, step)
        step *= 2
    return advantage.to(torch.float32), (advantage + value).to(torch.float32)


def _ahead(column: Tensor, run: Tensor, step: int) -> Tensor:
    """`[tokens]`: the value `step` places later in the same response, 0 after its end."""
    shifted = torch.zeros_like(column)
    shifted[:-step] = torch.where(run[step:] == run[:-step], column[step:], 0.0)
    return shifted
