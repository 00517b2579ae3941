"""Archer (arXiv 2507.15778): clip bounds and KL by the entropy class of the token."""

from __future__ import annotations

import torch

from megatron_fork.objective.losses.ppo import ppo
from megatron_fork.objective.losses.surrogate import Surrogate, clipped
from megatron_fork.objective.selected_tokens import SelectedTokens


def archer(tokens: SelectedTokens) -> Surrogate:
    """PPO's surrogate, with looser clip and less KL at high-entropy tokens."""
    config, bounds = tokens.config, tokens.config.archer
    forking = tokens.needed("forking", "loss")
    loose = clipped(tokens.ratio, tokens.advantage, bounds.forking_clip_low, bounds.forking_clip_high, config.dual_clip)
    value, low, high, dual = (
        torch.where(forking, wide, tight) for wide, tight in zip(loose[:4], ppo(tokens)[:4], strict=True)
    )
    share = torch.ones_like(tokens.logprob).masked_fill(forking, bounds.forking_kl)
    return Surrogate(value, low, high, dual, kl_share=share)
