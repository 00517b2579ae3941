"""What is added to the surrogate of a token: entropy bonus, KL to the reference, KL-Cov's penalty, shaped advantages."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from megatron_fork.objective.marked import Marked, exponential

# KL(policy || reference) from tokens of the policy, with d = logp - reference logp (J. Schulman, "Approximating KL
# divergence", 2020). As losses they differ: see `Config.kl_estimator`.
KL_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": lambda difference: difference,
    "k2": lambda difference: difference.square() / 2.0,
    "k3": lambda difference: exponential(-difference) - 1.0 + difference,
}


def shaped_advantage(tokens: Marked) -> Tensor:
    """`[marked]`: A + min(alpha sg(H), |A| / kappa) (arXiv 2506.14758); A itself where alpha is 0."""
    shaping = tokens.config.entropy_shaping
    if not shaping.alpha:
        return tokens.advantage
    entropy = tokens.needed("entropy", "entropy_shaping").detach()
    return tokens.advantage + torch.minimum(shaping.alpha * entropy, tokens.advantage.abs() / shaping.kappa)


def regularization(tokens: Marked) -> tuple[Tensor, dict[str, Tensor]]:
    """What each marked token adds to the objective, `[marked]`, and the columns that metrics sum."""
    config = tokens.config
    added, columns = torch.zeros_like(tokens.logprob), {}
    if config.entropy_coef:
        added = added + config.entropy_coef * tokens.needed("entropy", "entropy_coef")
    if config.kl_coef:
        difference = tokens.logprob - tokens.needed("reference_logprob", "kl_coef")
        columns["kl"] = KL_ESTIMATORS[config.kl_estimator](difference)
        added = added - _kl_coefficient(tokens) * columns["kl"]
    if config.loss in ("clip_cov", "kl_cov"):
        columns["covered"] = tokens.needed("covered", "loss")
    if config.loss == "kl_cov":
        added = added - config.cov_kl_coef * tokens.log_ratio.abs() * columns["covered"]
    return added, columns


def _kl_coefficient(tokens: Marked) -> Tensor | float:
    """One number, or under archer `[marked]`: smaller for high-entropy tokens."""
    config = tokens.config
    if config.loss != "archer":
        return config.kl_coef
    share = torch.ones_like(tokens.logprob).masked_fill(tokens.needed("forking", "loss"), config.archer.forking_kl)
    return config.kl_coef * share
