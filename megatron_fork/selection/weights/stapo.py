"""STAPO's mask of spurious tokens (arXiv 2602.15620): of a good response, unlikely where the policy was sure."""

from __future__ import annotations

import math

import torch

from megatron_fork.selection.weights.chosen_tokens import ChosenTokens, Weighed


def stapo(tokens: ChosenTokens) -> Weighed:
    """0 where A > 0, p < tau_p and H < tau_h, else 1; the loss is an average over the rest.

    p and H are of the policy whose entropy selects. tau_h is a quantile of the entropies over what `selection.scope` says.
    """
    settings = tokens.config.stapo
    likely = tokens.needed("logprob") >= math.log(settings.probability)
    is_sure = torch.ones_like(tokens.chosen)
    if settings.entropy_quantile < 1.0:
        is_sure = ~tokens.highest(1.0 - settings.entropy_quantile)
    spurious = (tokens.needed("advantage") > 0.0) & ~likely & is_sure
    return Weighed((~spurious).float())
