"""What is added to the surrogate of a token: entropy bonus, KL to the reference, a loss's own penalty, shaped advantages."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from megatron_fork.objective.losses.surrogate import Surrogate
from megatron_fork.objective.selected_tokens import SelectedTokens, exponential

# KL(policy || reference) from tokens of the policy, with d = logp - reference logp (J. Schulman, "Approximating KL
# divergence", 2020). As losses they differ: see `ObjectiveConfig.kl_estimator`.
KL_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": lambda difference: difference,
    "k2": lambda difference: difference.square() / 2.0,
    "k3": lambda difference: exponential(-difference) - 1.0 + difference,
}


def shaped_advantage(tokens: SelectedTokens) -> Tensor:
    """`[selected]`: A + min(alpha sg(H), |A| / kappa) (arXiv 2506.14758); A itself where alpha is 0."""
    shaping = tokens.config.entropy_shaping
    if not shaping.alpha:
        return tokens.advantage
    entropy = tokens.needed("entropy", "entropy_shaping").detach()
    return tokens.advantage + torch.minimum(shaping.alpha * entropy, tokens.advantage.abs() / shaping.kappa)


def regularization(tokens: SelectedTokens, surrogate: Surrogate) -> tuple[Tensor, dict[str, Tensor]]:
    """What each selected token adds to the objective, `[selected]`, and the columns that metrics sum."""
    config = tokens.config
    added, columns = torch.zeros_like(tokens.logprob), {}
    if config.entropy_coef:
        added = added + config.entropy_coef * tokens.needed("entropy", "entropy_coef")
    if config.kl_coef:
        difference = tokens.logprob - tokens.needed("reference_logprob", "kl_coef")
        columns["kl"] = KL_ESTIMATORS[config.kl_estimator](difference)
        share = 1.0 if surrogate.kl_share is None else surrogate.kl_share
        added = added - config.kl_coef * share * columns["kl"]
    if surrogate.penalty is not None:
        added = added - surrogate.penalty
    return added, columns
