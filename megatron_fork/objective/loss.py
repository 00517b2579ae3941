"""The policy-gradient loss under a token mask (arXiv 2506.01939 Eq. 6; clip-higher of arXiv 2503.14476).

The loss is a sum over marked tokens divided by a global number that the caller passes in. It does not depend on micro-batches
or ranks: the losses of parts add up to the whole, under every split that respects `needs_whole_sequences`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_fork.errors import ExtensionError, ObjectiveError
from megatron_fork.objective.config import ObjectiveConfig
from megatron_fork.objective.correction import correct
from megatron_fork.objective.losses import loss_named
from megatron_fork.objective.losses.surrogate import Surrogate
from megatron_fork.objective.selected_tokens import SelectedTokens, exponential
from megatron_fork.recipe import is_custom, told_by_name

# KL(policy || reference) from tokens of the policy, with d = logp - reference logp (J. Schulman, "Approximating KL
# divergence", 2020). As losses they differ: see `ObjectiveConfig.kl_estimator`.
KL_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": lambda difference: difference,
    "k2": lambda difference: difference.square() / 2.0,
    "k3": lambda difference: exponential(-difference) - 1.0 + difference,
}


class PolicyLoss(NamedTuple):
    """The loss, and detached *sums* over the marked tokens, to be added up over micro-batches and ranks."""

    loss: Tensor
    metrics: dict[str, Tensor]


def needs_whole_sequences(config: ObjectiveConfig) -> bool:
    """Whether one call of `policy_loss` must have all marked tokens of each of its responses."""
    return loss_named(config.loss).whole_responses


def policy_loss(
    logprob: Tensor,
    old_logprob: Tensor,
    advantage: Tensor,
    mask: Tensor,
    config: ObjectiveConfig,
    *,
    normalizer: float,
    entropy: Tensor | None = None,
    rollout_logprob: Tensor | None = None,
    reference_logprob: Tensor | None = None,
    sequence: Tensor | None = None,
    weight: Tensor | None = None,
    forking: Tensor | None = None,
    covered: Tensor | None = None,
    accepted: Tensor | None = None,
) -> PolicyLoss:
    """-sum over marked tokens of weight x (correction x surrogate + regularization) / normalizer.

    Args:
        logprob: `[...]` float32, of the policy being trained; carries the gradient.
        old_logprob: `[...]` float32, of the policy before this batch's updates.
        advantage: `[...]` float32.
        mask: `[...]` bool; unmarked tokens enter nothing.
        config: the surrogate with its bounds, penalties, correction.
        normalizer: global number to divide by; `token_weights` gives it.
        entropy: `[...]` float32, with gradient; needed if `entropy_coef` or `entropy_shaping.alpha` is not 0.
        rollout_logprob: `[...]` float32, the engine's; needed if `correction` is tis or icepop.
        reference_logprob: `[...]` float32, of the reference policy; needed if `kl_coef` is not 0.
        sequence: `[...]` int64, the response of each token; needed by gspo.
        weight: `[...]` float32, a factor of the whole token, of `token_weights` and `Selection.weight`; 1 by default.
        forking: `[...]` bool, the high-entropy class; needed by archer.
        covered: `[...]` bool, of `covariance_tokens`; needed by clip_cov and kl_cov.
        accepted: `[...]` bool, of `accepted_responses`; needed if `correction` is sequence.

    Metrics are sums in the dtype of `logprob`: of tokens, token ratios, k1 and k3 to the old policy, the surrogate with its
    correction and without `weight`, tokens that each bound clipped, and, depending on config, correction weights, corrected
    tokens, KL and covered tokens.

    """
    # Everything but `logprob` and `entropy` is constant, even if the caller's tensors have a graph.
    old_logprob, advantage = old_logprob.detach(), advantage.detach()
    rollout_logprob, reference_logprob, weight = map(_constant, (rollout_logprob, reference_logprob, weight))
    if not normalizer > 0.0:
        raise ObjectiveError(f"normalizer={normalizer} is not positive", hint="token_weights gives at least 1")
    optional = {
        "entropy": entropy,
        "rollout_logprob": rollout_logprob,
        "reference_logprob": reference_logprob,
        "sequence": sequence,
        "weight": weight,
        "forking": forking,
        "covered": covered,
        "accepted": accepted,
    }
    tokens = SelectedTokens.of(logprob, old_logprob, advantage, mask, config, optional)
    tokens = replace(tokens, advantage=shaped_advantage(tokens))
    loss = loss_named(config.loss)
    with told_by_name("objective.loss", config.loss):
        surrogate = loss(tokens)
    if is_custom(config.loss):
        _refuse_unfit(surrogate, tokens)
    columns = {
        "tokens": torch.ones_like(tokens.ratio),
        "ratio": tokens.ratio,
        "k1": -tokens.log_ratio,
        "k3": tokens.ratio - 1.0 - tokens.log_ratio,
        "clipped_high": surrogate.clipped_high,
        "clipped_low": surrogate.clipped_low,
        "dual_clipped": surrogate.dual_clipped,
    }
    objective = surrogate.value
    if config.correction != "none":
        factor = correct(tokens.old_logprob, tokens.given("rollout_logprob"), tokens.given("accepted"), config)
        objective = objective * factor.weight
        columns |= {"correction_weight": factor.weight, "correction_clipped": factor.clipped}
    columns["surrogate"] = objective
    added, more = regularization(tokens, surrogate)
    if "covered" in loss.columns:
        more["covered"] = tokens.needed("covered", "loss")
    objective = objective + added
    if weight is not None:
        objective = objective * weight[mask]
    sums = {name: column.detach().sum(dtype=tokens.ratio.dtype) for name, column in (columns | more).items()}
    return PolicyLoss(-objective.sum() / normalizer, sums)


def _refuse_unfit(surrogate: Surrogate, tokens: SelectedTokens) -> None:
    """Raises where a loss of the user's own gives back anything but one number a token, which might train all the same."""
    name = f"objective.loss={tokens.config.loss}"
    if not isinstance(surrogate, Surrogate):
        raise ExtensionError(
            f"{name} gives back {type(surrogate).__name__}",
            hint="a Surrogate, as megatron_fork.objective.clipped makes it",
        )
    for column, values in surrogate._asdict().items():
        if values is None and column in Surrogate._field_defaults:
            continue
        kind = torch.bool if "clipped" in column else tokens.ratio.dtype
        if not isinstance(values, Tensor) or values.shape != tokens.ratio.shape or values.dtype != kind:
            found = f"{list(values.shape)} {values.dtype}" if isinstance(values, Tensor) else type(values).__name__
            raise ExtensionError(
                f"{name}: its {column} is {found}", hint=f"one a selected token: {list(tokens.ratio.shape)} {kind}"
            )
        if values.is_floating_point() and not torch.isfinite(values).all():
            raise ExtensionError(
                f"{name}: its {column} holds a value that is not finite",
                hint="look for a division by 0, a logarithm, an overflow",
            )
    given = [surrogate.value, surrogate.penalty]
    if tokens.logprob.requires_grad and not any(values is not None and values.requires_grad for values in given):
        raise ExtensionError(
            f"{name}: its value has no gradient", hint="compute it from tokens.logprob or tokens.ratio"
        )


def _constant(column: Tensor | None) -> Tensor | None:
    return None if column is None else column.detach()


def supervised_loss(logprob: Tensor, *, normalizer: float) -> PolicyLoss:
    """Cross-entropy of demonstrations: -sum of log-probs / normalizer, in nats per token."""
    return PolicyLoss(-logprob.sum() / normalizer, {})


def shaped_advantage(tokens: SelectedTokens) -> Tensor:
    """`[selected]`: A + min(alpha sg(H), |A| / kappa) (arXiv 2506.14758); A itself if alpha is 0."""
    shaping = tokens.config.entropy_shaping
    if not shaping.alpha:
        return tokens.advantage
    entropy = tokens.needed("entropy", "entropy_shaping").detach()
    return tokens.advantage + torch.minimum(shaping.alpha * entropy, tokens.advantage.abs() / shaping.kappa)


def regularization(tokens: SelectedTokens, surrogate: Surrogate) -> tuple[Tensor, dict[str, Tensor]]:
    """What bonuses and penalties add to each selected token's objective, `[selected]`, and columns for the metrics."""
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
