"""CISPO (arXiv 2506.13585): sg(clip(r)) A logp."""

from __future__ import annotations

import torch

from megatron_fork.objective.losses.surrogate import Surrogate
from megatron_fork.objective.selected_tokens import SelectedTokens


def cispo(tokens: SelectedTokens) -> Surrogate:
    """The weight is clipped and held constant, so that every token keeps its gradient."""
    config, ratio = tokens.config, tokens.ratio.detach()
    low, high = 1.0 - config.clip_low, 1.0 + config.clip_high
    value = ratio.clamp(low, high) * tokens.advantage * tokens.logprob
    return Surrogate(value, ratio < low, ratio > high, torch.zeros_like(ratio, dtype=torch.bool))
