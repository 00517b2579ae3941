"""A band of surprisal relative to entropy (RSI-S, arXiv 2606.31575): neither what was certain nor what was hardly possible."""

from __future__ import annotations

from megatron_fork.selection.weights.chosen_tokens import ChosenTokens, Weighed

# Of a token that is certain both are rounding noise, and their quotient would be one; with this it is 0. In nats.
_FLOOR = 1e-4


def surprisal_band(tokens: ChosenTokens) -> Weighed:
    """1 where low <= -logp / H <= high, else 0. At every position the policy's mean of -logp is H, so that the index is 1."""
    settings = tokens.config.surprisal_band
    index = -tokens.needed("logprob") / (tokens.entropy + _FLOOR)
    below, above = index < settings.low, index > settings.high
    found = tokens.shares(below=below, above=above)
    return Weighed(
        (~(below | above)).float(),
        {"surprisal_band_below": found["below"], "surprisal_band_above": found["above"]},
    )
