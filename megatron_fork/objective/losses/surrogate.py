"""The result of a loss for its tokens, and the clip that most losses share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Surrogate(NamedTuple):
    """`[selected]` each: the value to be maximised, with gradient, and flags of the tokens that a bound clipped."""

    value: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    dual_clipped: Tensor
    penalty: Tensor | None = None
    """Subtracted from the objective without the correction for the engine's log-probs."""
    kl_share: Tensor | None = None
    """Fraction of `objective.kl_coef` that applies to each token; None means 1."""


def clipped(ratio: Tensor, advantage: Tensor, low: float, high: float, dual_clip: float) -> Surrogate:
    """min(r A, clip(r, 1 - low, 1 + high) A), for A < 0 not below dual_clip x A."""
    value = torch.minimum(ratio * advantage, ratio.clamp(1.0 - low, 1.0 + high) * advantage)
    bound = dual_clip * advantage
    dual = (advantage < 0) & (value < bound) if dual_clip else torch.zeros_like(advantage, dtype=torch.bool)
    return Surrogate(
        torch.where(dual, bound, value),
        (ratio < 1.0 - low) & (advantage < 0),
        (ratio > 1.0 + high) & (advantage > 0),
        dual,
    )
