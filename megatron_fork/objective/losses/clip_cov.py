"""Clip-Cov (arXiv 2505.22617): some tokens of high covariance, chosen at random, do not count in the sum."""

from __future__ import annotations

import torch

from megatron_fork.objective.losses.ppo import ppo
from megatron_fork.objective.losses.surrogate import Surrogate
from megatron_fork.objective.selected_tokens import SelectedTokens


def clip_cov(tokens: SelectedTokens) -> Surrogate:
    """PPO's surrogate, and 0 at covered tokens."""
    surrogate = ppo(tokens)
    return surrogate._replace(value=torch.where(tokens.needed("covered", "loss"), 0.0, surrogate.value))
