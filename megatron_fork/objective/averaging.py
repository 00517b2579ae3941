"""Sums over all ranks and what they are divided by: a weight for each token of this rank, and one global number."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from megatron_fork.distributed import collectives, device
from megatron_fork.distributed.collectives import Group
from megatron_fork.objective.config import ObjectiveConfig
from megatron_fork.objective.selected_tokens import refuse_other_shapes, refuse_other_than_flags


class TokenWeights(NamedTuple):
    """`weight` float32 `[tokens]`, None if all are 1; `normalizer` is the same on every rank and at least 1."""

    weight: Tensor | None
    normalizer: float


def token_weights(
    selected: Tensor, candidate: Tensor, sequence: Tensor, config: ObjectiveConfig, *, group: Group = None
) -> TokenWeights:
    """The weights and the normalizer of a mini-batch for `config.average`, for `policy_loss`.

    Args:
        selected: bool `[tokens]`, the tokens that carry gradient.
        candidate: bool `[tokens]`, the candidates: response tokens that were not filtered out.
        sequence: int64 `[tokens]`, the response of each token. A response is on one rank; ranks may use the same numbers
            for different responses.
        config: `average`, and `denominator`: which tokens of a response count.
        group: the ranks that share the mini-batch.

    A response counts if it has candidates, even if none of them is selected. There may be no tokens at all.

    """
    refuse_other_shapes("selected", selected, {"candidate": candidate, "sequence": sequence})
    refuse_other_than_flags({"selected": selected, "candidate": candidate})
    counted = selected if config.denominator == "selected" else candidate
    if config.average == "token":
        (tokens,) = global_sums(group, counted.sum())
        return TokenWeights(None, max(1.0, tokens))
    responses, place = torch.unique(sequence, return_inverse=True)
    present = torch.zeros(len(responses), dtype=torch.bool, device=sequence.device)
    present[place[candidate]] = True
    (number,) = global_sums(group, present.sum())
    number = max(1.0, number)
    if config.average == "constant":
        return TokenWeights(None, number * config.constant_length)
    length = torch.bincount(place[counted], minlength=len(responses))
    return TokenWeights((1.0 / length.clamp(min=1).to(torch.float32))[place], number)


def global_sums(group: Group, *parts: Tensor) -> list[float]:
    """Each 0-d `part` summed over the ranks of `group`, in float64: one collective."""
    return collectives.all_reduce_sum(torch.stack([part.double() for part in parts]).to(device()), group).tolist()
