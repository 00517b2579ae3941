"""Soft weights by entropy, whose side may change while a run goes on, in the manner of arXiv 2605.07660.

That paper weighs by *attention* entropy, which hardly goes with token entropy and which fused attention does not compute: what
is taken from it here is that weights are soft, and go from low to high entropies. The form of the weight is this project's.
"""

from __future__ import annotations

import math

import torch

from megatron_fork.selection.weights.chosen_tokens import ChosenTokens, Weighed

_EPSILON = 1e-6  # nats; equal entropies are weighed alike


def soft_entropy(tokens: ChosenTokens) -> Weighed:
    """sigmoid(s z), over its mean; z = (H - mean H) / std H, all three over the chosen tokens of all ranks.

    The slope s goes from `start` to `end` over the first `updates` updates of the run.
    """
    settings = tokens.config.soft_entropy
    progress = min(1.0, tokens.columns.step / settings.updates) if settings.updates else 1.0
    slope = settings.start + (settings.end - settings.start) * progress
    entropy = tokens.entropy.double()
    total, count = tokens.sums(entropy[tokens.chosen].sum(), tokens.chosen.sum())
    centred = entropy - total / max(1.0, count)
    (squares,) = tokens.sums(centred[tokens.chosen].square().sum())
    weight = torch.sigmoid(slope * centred / (math.sqrt(squares / max(1.0, count)) + _EPSILON))
    (mean,) = tokens.sums(weight[tokens.chosen].sum() / max(1.0, count))
    return Weighed(weight / (mean or 1.0), {"soft_entropy_slope": slope})
