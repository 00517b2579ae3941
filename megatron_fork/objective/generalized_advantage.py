"""Generalised advantage estimation of tokens from a critic's values (arXiv 1506.02438, Eq. 16)."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_fork.errors import ObjectiveError


def generalized_advantages(
    token_rewards: Tensor, values: Tensor, sequence: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """A_t = sum over i of (gamma lam)^i delta_(t+i) within a response, delta_t = r_t + gamma V_(t+1) - V_t.

    Args:
        token_rewards: float `[tokens]`; an outcome reward stands at the last token of its response.
        values: float `[tokens]`, the critic's, of the state in which the token was sampled.
        sequence: int64 `[tokens]`, the response of each token; a response is one run of equal numbers.
        gamma: discount.
        lam: decay of the estimator.

    Returns:
        float32 `[tokens]` each: advantages, and the returns A + V that the critic learns. V is 0 past the end of a
        response, cut off or not.

    """
    for name, column in {"values": values, "sequence": sequence}.items():
        if column.shape != token_rewards.shape or column.dim() != 1:
            raise ObjectiveError(
                f"{name} has shape {list(column.shape)}, token_rewards {list(token_rewards.shape)}",
                hint="flat columns, one value a token",
            )
    for name, column in {"token_rewards": token_rewards, "values": values}.items():
        if not torch.isfinite(column).all():
            raise ObjectiveError(f"{name} holds a value that is not finite", hint="check the rewards and the critic")
    _, run, lengths = torch.unique_consecutive(sequence, return_inverse=True, return_counts=True)
    if len(lengths) != len(torch.unique(sequence)):
        raise ObjectiveError(
            f"sequence has {len(lengths)} runs of {len(torch.unique(sequence))} responses",
            hint="the tokens of a response stand together, in order",
        )
    value = values.to(torch.float64)
    advantage = token_rewards.to(torch.float64) + gamma * _ahead(value, run, 1) - value
    # Doubling: once each place holds the discounted sum of `step` deltas, adding the sum found `step` places ahead makes
    # it one of 2 step. That is log2(longest) sweeps over the flat column, without padding.
    step = 1
    while step < (int(lengths.max()) if len(lengths) else 0):
        advantage = advantage + (gamma * lam) ** step * _ahead(advantage, run, step)
        step *= 2
    return advantage.to(torch.float32), (advantage + value).to(torch.float32)


def _ahead(column: Tensor, run: Tensor, step: int) -> Tensor:
    """`[tokens]`: the value `step` places on in the same response, 0 past its end."""
    shifted = torch.zeros_like(column)
    shifted[:-step] = torch.where(run[step:] == run[:-step], column[step:], 0.0)
    return shifted
