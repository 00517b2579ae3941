"""The paper's surrogate (arXiv 2506.01939 Eq. 6), with the clip-higher of arXiv 2503.14476."""

from __future__ import annotations

from megatron_fork.objective.losses.surrogate import Surrogate, clipped
from megatron_fork.objective.selected_tokens import SelectedTokens


def ppo(tokens: SelectedTokens) -> Surrogate:
    """min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)."""
    config = tokens.config
    return clipped(tokens.ratio, tokens.advantage, config.clip_low, config.clip_high, config.dual_clip)
