"""KL-Cov (arXiv 2505.22617): a penalty on the tokens of highest covariance."""

from __future__ import annotations

from math import inf

from megatron_fork.objective.losses.surrogate import Surrogate, clipped
from megatron_fork.objective.selected_tokens import SelectedTokens


def kl_cov(tokens: SelectedTokens) -> Surrogate:
    """Unclipped r A, minus cov_kl_coef |logp - old logp| at covered tokens."""
    config = tokens.config
    penalty = config.cov_kl_coef * tokens.log_ratio.abs() * tokens.needed("covered", "loss")
    return clipped(tokens.ratio, tokens.advantage, inf, inf, config.dual_clip)._replace(penalty=penalty)
