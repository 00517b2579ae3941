"""The surrogate objective of a token, one small function for each `config.loss`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_fork.objective.correction import response_means
from megatron_fork.objective.marked import Marked, exponential


class Surrogate(NamedTuple):
    """`[marked]` each: the value to be maximised, with gradient, and which tokens a bound took hold of, as bool."""

    value: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    dual_clipped: Tensor


def _clipped(ratio: Tensor, advantage: Tensor, low: float, high: float, dual_clip: float) -> Surrogate:
    """min(r A, clip(r, 1 - low, 1 + high) A), for A < 0 not below dual_clip x A."""
    value = torch.minimum(ratio * advantage, ratio.clamp(1.0 - low, 1.0 + high) * advantage)
    bound = dual_clip * advantage
    dual = (advantage < 0) & (value < bound) if dual_clip else torch.zeros_like(advantage, dtype=torch.bool)
    return Surrogate(
        torch.where(dual, bound, value),
        (ratio < 1.0 - low) & (advantage < 0),
        (ratio > 1.0 + high) & (advantage > 0),
        dual,
    )


def _ppo(tokens: Marked) -> Surrogate:
    """The paper's (arXiv 2506.01939 Eq. 6), with the clip-higher of arXiv 2503.14476."""
    config = tokens.config
    return _clipped(tokens.ratio, tokens.advantage, config.clip_low, config.clip_high, config.dual_clip)


def _gspo(tokens: Marked) -> Surrogate:
    """The token form of GSPO (arXiv 2507.18071): s_t = sg(s) pi_t / sg(pi_t), s the geometric mean of the ratios.

    Its value is s, which is clipped; its gradient in logp_t is s A, the same for every token of the response.
    """
    mean = response_means(tokens.log_ratio.detach(), tokens.needed("sequence", "loss")).to(tokens.ratio.dtype)
    ratio = exponential(mean) * (tokens.logprob - tokens.logprob.detach()).exp()
    return _ppo(replace(tokens, ratio=ratio))


def _cispo(tokens: Marked) -> Surrogate:
    """CISPO (arXiv 2506.13585): sg(clip(r)) A logp. A bounded weight leaves every token its gradient."""
    config, ratio = tokens.config, tokens.ratio.detach()
    low, high = 1.0 - config.clip_low, 1.0 + config.clip_high
    value = ratio.clamp(low, high) * tokens.advantage * tokens.logprob
    return Surrogate(value, ratio < low, ratio > high, torch.zeros_like(ratio, dtype=torch.bool))


def _clip_cov(tokens: Marked) -> Surrogate:
    """Clip-Cov (arXiv 2505.22617): tokens drawn among those of high covariance give nothing to the sum."""
    surrogate = _ppo(tokens)
    return surrogate._replace(value=torch.where(tokens.needed("covered", "loss"), 0.0, surrogate.value))


def _kl_cov(tokens: Marked) -> Surrogate:
    """KL-Cov (arXiv 2505.22617): the ratio is not clipped; the penalty on covered tokens is a regularizer."""
    return _clipped(tokens.ratio, tokens.advantage, inf, inf, tokens.config.dual_clip)


def _archer(tokens: Marked) -> Surrogate:
    """Archer (arXiv 2507.15778): clip bounds by the entropy class of the token."""
    config, archer = tokens.config, tokens.config.archer
    forking = tokens.needed("forking", "loss")
    loose = _clipped(
        tokens.ratio, tokens.advantage, archer.forking_clip_low, archer.forking_clip_high, config.dual_clip
    )
    return Surrogate(*(torch.where(forking, wide, tight) for wide, tight in zip(loose, _ppo(tokens), strict=True)))


SURROGATES: dict[str, Callable[[Marked], Surrogate]] = {
    "ppo": _ppo,
    "gspo": _gspo,
    "cispo": _cispo,
    "clip_cov": _clip_cov,
    "kl_cov": _kl_cov,
    "archer": _archer,
}
