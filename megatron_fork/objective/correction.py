"""The correction for engine log-probs that differ from the trainer's, and the size of that difference."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from megatron_fork.distributed import collectives, device
from megatron_fork.distributed.collectives import Group
from megatron_fork.errors import ObjectiveError
from megatron_fork.objective.averaging import global_sums
from megatron_fork.objective.config import ObjectiveConfig
from megatron_fork.objective.selected_tokens import refuse_other_shapes


class Correction(NamedTuple):
    """The factor of each token's surrogate, without gradient, and flags of the factors that a bound changed."""

    weight: Tensor
    clipped: Tensor


class Mismatch(NamedTuple):
    """Engine against trainer over all ranks, in nats per token; `clipped` is the fraction that the correction changed.

    `factor` is the mean of exp |difference|, the factor between the two probabilities of a token: 1 if they are equal.
    """

    largest: float
    mean: float
    k3: float
    clipped: float
    tokens: int
    factor: float


def accepted_responses(
    old_logprob: Tensor, rollout_logprob: Tensor, sequence: Tensor, config: ObjectiveConfig
) -> Tensor:
    """Bool `[tokens]`: the token's response stays in [sequence_low, sequence_high], for `correction=sequence`.

    The bounds apply to the geometric mean of old / rollout over *all* tokens of the response, selected or not, so that it
    does not depend on micro-batches.

    Args:
        old_logprob: float `[tokens]`, the trainer's, before this batch's updates.
        rollout_logprob: float `[tokens]`, the engine's.
        sequence: int64 `[tokens]`, the response of each token.
        config: the bounds.

    """
    refuse_other_shapes("old_logprob", old_logprob, {"rollout_logprob": rollout_logprob, "sequence": sequence})
    ratio = response_means((old_logprob - rollout_logprob).detach(), sequence).exp()
    return (ratio >= config.sequence_low) & (ratio <= config.sequence_high)


def correct(
    old_logprob: Tensor, rollout_logprob: Tensor | None, accepted: Tensor | None, config: ObjectiveConfig
) -> Correction:
    """The correction of each token, `[tokens]`, for any part of the tokens.

    tis is truncated importance sampling, icepop its masked variant (arXiv 2510.18855): both need `rollout_logprob`.
    sequence needs `accepted`, from `accepted_responses`.
    """
    if config.correction == "sequence":
        kept = _required(accepted, "accepted", config)
        return Correction(kept.to(old_logprob.dtype), ~kept)
    if config.correction == "none":
        return Correction(torch.ones_like(old_logprob), torch.zeros_like(old_logprob, dtype=torch.bool))
    weight = (old_logprob - _required(rollout_logprob, "rollout_logprob", config)).detach().exp()
    if config.correction == "tis":
        return Correction(weight.clamp(max=config.tis_cap), weight > config.tis_cap)
    outside = ~((weight >= config.icepop_low) & (weight <= config.icepop_high))
    return Correction(torch.where(outside, 0.0, weight), outside)


def response_means(column: Tensor, sequence: Tensor) -> Tensor:
    """float64, the shape of `column`: the mean over the tokens of each token's response."""
    _, place, count = torch.unique(sequence, return_inverse=True, return_counts=True)
    sums = torch.zeros(len(count), dtype=torch.float64, device=column.device)
    sums.index_add_(0, place.reshape(-1), column.reshape(-1).to(torch.float64))
    return (sums / count)[place]


def rollout_mismatch(
    old_logprob: Tensor,
    rollout_logprob: Tensor,
    config: ObjectiveConfig,
    *,
    accepted: Tensor | None = None,
    fresh: Tensor | None = None,
    group: Group = None,
) -> Mismatch:
    """How far the engine's log-probs are from the trainer's, over the tokens of all ranks; two collectives.

    `k3` estimates KL(engine || trainer) from the engine's tokens. `accepted` is needed if the correction is sequence.
    `fresh`, bool `[tokens]`, marks the tokens that were drawn with the trainer's current weights: `largest` is over these only.
    A NaN anywhere makes `largest` infinite on every rank. There may be no tokens at all.
    """
    others = {"rollout_logprob": rollout_logprob, "accepted": accepted, "fresh": fresh}
    refuse_other_shapes("old_logprob", old_logprob, others)
    difference = (old_logprob - rollout_logprob).detach().to(torch.float64)
    # A maximum over ranks may drop NaN, depending on the backend; infinity stays.
    distance = torch.nan_to_num(difference.abs(), nan=torch.inf, posinf=torch.inf)
    checked = distance if fresh is None else distance[fresh]
    most = checked.max() if checked.numel() else checked.new_zeros(())
    largest = float(collectives.all_reduce_max(most.to(device()), group))
    mean, beyond, k3, clipped, count = global_sums(
        group,
        difference.abs().sum(),
        torch.expm1(difference.abs()).sum(),
        (torch.expm1(difference) - difference).sum(),
        correct(old_logprob, rollout_logprob, accepted, config).clipped.sum(),
        torch.tensor(difference.numel(), device=difference.device),
    )
    tokens = max(1.0, count)
    return Mismatch(largest, mean / tokens, k3 / tokens, clipped / tokens, int(count), 1.0 + beyond / tokens)


def _required(column: Tensor | None, name: str, config: ObjectiveConfig) -> Tensor:
    if column is None:
        raise ObjectiveError(
            f"objective.correction needs {name}; correction is {config.correction}", hint=f"pass {name} too"
        )
    return column
