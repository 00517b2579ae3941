"""Weights by polarity and entropy, the four quadrants of arXiv 2604.11056: good or bad response, high or low entropy."""

from __future__ import annotations

from megatron_fork.selection.weights.chosen_tokens import ChosenTokens, Weighed


def quadrants(tokens: ChosenTokens) -> Weighed:
    """The weight of each token's quadrant; `selection.ratio`, `scope` and `rule` say which entropies are high.

    A token whose advantage is 0 counts as one of a bad response.
    """
    settings = tokens.config.quadrants
    high, positive = tokens.highest(tokens.config.ratio), tokens.needed("advantage") > 0.0
    flags = {
        "positive_high": positive & high,
        "negative_high": ~positive & high,
        "positive_low": positive & ~high,
        "negative_low": ~positive & ~high,
    }
    weight = sum(vars(settings)[name] * flag.float() for name, flag in flags.items())
    shares = tokens.shares(**flags)
    return Weighed(
        weight,
        {
            "quadrants_positive_high": shares["positive_high"],
            "quadrants_negative_high": shares["negative_high"],
            "quadrants_positive_low": shares["positive_low"],
            "quadrants_negative_low": shares["negative_low"],
        },
    )
