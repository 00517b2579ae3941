"""The token form of GSPO (arXiv 2507.18071): s_t = sg(s) pi_t / sg(pi_t), s the geometric mean of the ratios."""

from __future__ import annotations

from dataclasses import replace

from megatron_fork.objective.correction import response_means
from megatron_fork.objective.losses.ppo import ppo
from megatron_fork.objective.losses.surrogate import Surrogate
from megatron_fork.objective.selected_tokens import SelectedTokens, exponential


def gspo(tokens: SelectedTokens) -> Surrogate:
    """PPO's clip of s; the gradient with respect to logp_t is s A, the same for every token of the response."""
    mean = response_means(tokens.log_ratio.detach(), tokens.needed("sequence", "loss")).to(tokens.ratio.dtype)
    ratio = exponential(mean) * (tokens.logprob - tokens.logprob.detach()).exp()
    return ppo(replace(tokens, ratio=ratio))
