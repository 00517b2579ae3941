"""The policy-gradient loss under a token mask (arXiv 2506.01939 Eq. 6; clip-higher of arXiv 2503.14476).

The loss is a sum over marked tokens divided by a global count that the caller passes in. It does not know of micro-batches
or ranks: sums of the parts are the whole, under every split.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from megatron_fork.errors import ObjectiveError
from megatron_fork.objective.config import Config

# e^80 is finite in float32; infinity times the 0 that a clipped token passes back would be NaN.
_LARGEST_LOG_RATIO = 80.0


class PolicyLoss(NamedTuple):
    """The loss, and detached *sums* over the marked tokens, to be added up over micro-batches and ranks."""

    loss: Tensor
    metrics: dict[str, Tensor]


def policy_loss(
    logprob: Tensor,
    old_logprob: Tensor,
    advantage: Tensor,
    mask: Tensor,
    config: Config,
    *,
    normalizer: float,
    entropy: Tensor | None = None,
    rollout_logprob: Tensor | None = None,
) -> PolicyLoss:
    """-sum of min(r A, clip(r) A) over marked tokens / normalizer.

    Args:
        logprob: `[...]` float32, of the policy being trained; carries the gradient.
        old_logprob: `[...]` float32, of the policy before this batch's updates.
        advantage: `[...]` float32.
        mask: `[...]` bool; unmarked tokens enter nothing.
        config: clips, dual clip, entropy bonus, correction.
        normalizer: global count to divide by: selected tokens or all candidates of the mini-batch.
        entropy: `[...]` float32, with gradient; needed where `entropy_coef` is not 0.
        rollout_logprob: `[...]` float32, the engine's; needed where `correction` is not none.

    """
    tensors = {"old_logprob": old_logprob, "advantage": advantage, "mask": mask}
    for name, tensor in tensors.items():
        if tensor.shape != logprob.shape:
            raise ObjectiveError(
                f"{name} has shape {list(tensor.shape)}, logprob {list(logprob.shape)}", hint="one value a token"
            )
    old_logprob, advantage = old_logprob[mask], advantage[mask]
    if not torch.isfinite(advantage).all():
        raise ObjectiveError("advantage holds a value that is not finite", hint="check the rewards")
    log_ratio = logprob[mask] - old_logprob
    ratio = log_ratio.clamp(max=_LARGEST_LOG_RATIO).exp()
    unclipped = ratio * advantage
    clipped = ratio.clamp(1.0 - config.clip_low, 1.0 + config.clip_high) * advantage
    surrogate = torch.minimum(unclipped, clipped)
    bounded = config.dual_clip * advantage
    dual = (
        (advantage < 0) & (surrogate < bounded) if config.dual_clip else torch.zeros_like(advantage, dtype=torch.bool)
    )
    surrogate = torch.where(dual, bounded, surrogate)
    metrics = {
        "tokens": torch.tensor(float(ratio.numel()), device=ratio.device),
        "ratio": ratio.detach().sum(),
        "k3": (ratio - 1.0 - log_ratio).detach().sum(),
        "clipped_high": ((ratio > 1.0 + config.clip_high) & (advantage > 0)).sum(),
        "clipped_low": ((ratio < 1.0 - config.clip_low) & (advantage < 0)).sum(),
        "dual_clipped": dual.sum(),
    }
    if config.correction != "none":
        weight = _correction(old_logprob, _required(rollout_logprob, "rollout_logprob", "correction")[mask], config)
        surrogate = surrogate * weight
        metrics["correction_weight"] = weight.sum()
    objective = surrogate.sum()
    if config.entropy_coef:
        objective = objective + config.entropy_coef * _required(entropy, "entropy", "entropy_coef")[mask].sum()
    return PolicyLoss(-objective / normalizer, metrics)


def supervised_loss(logprob: Tensor, *, normalizer: float) -> PolicyLoss:
    """Cross-entropy of demonstrations: -sum of log-probs / normalizer, in nats a token."""
    return PolicyLoss(-logprob.sum() / normalizer, {})


def _correction(old_logprob: Tensor, rollout_logprob: Tensor, config: Config) -> Tensor:
    weight = (old_logprob - rollout_logprob).exp().detach()
    if config.correction == "tis":
        return weight.clamp(max=config.tis_cap)
    return torch.where((weight >= config.icepop_low) & (weight <= config.icepop_high), weight, 0.0)


def _required(tensor: Tensor | None, name: str, field: str) -> Tensor:
    if tensor is None:
        raise ObjectiveError(f"objective.{field} needs {name}", hint=f"pass {name} to policy_loss")
    return tensor
