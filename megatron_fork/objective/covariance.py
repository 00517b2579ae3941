"""The tokens that Clip-Cov and KL-Cov restrain: those whose update lowers the entropy most (arXiv 2505.22617)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from megatron_fork.distributed.collectives import Group
from megatron_fork.errors import ObjectiveError
from megatron_fork.objective.averaging import global_sums
from megatron_fork.objective.config import ObjectiveConfig
from megatron_fork.objective.losses import LOSSES, loss_named
from megatron_fork.objective.selected_tokens import refuse_other_shapes, refuse_other_than_flags
from megatron_fork.selection import SelectionConfig, select_tokens

# Differs from the default of `selection.seed`, since the control arm draws its tokens in the same way.
_SEED = 22617


def covariance_tokens(
    logprob: Tensor,
    advantage: Tensor,
    mask: Tensor,
    config: ObjectiveConfig,
    *,
    group: Group = None,
    token_ids: Tensor | None = None,
    step: int = 0,
    tie_tolerance: float = 0.0,
) -> Tensor:
    """Which of the marked tokens are covered: bool `[...]`, for `policy_loss(covered=...)`.

    The covariance of a token is (A - mean A)(logp - mean logp), with the exact means over the marked tokens of all
    ranks. clip_cov draws cov_share of the marked tokens at random among those with a covariance in
    [cov_low, cov_high], or takes all of these if they are fewer. kl_cov takes the cov_share with the largest.

    Args:
        logprob: float `[...]`, of the policy as it enters the update.
        advantage: float `[...]`.
        mask: bool `[...]`, the tokens that carry gradient.
        config: `loss` names the rule.
        group: the ranks that share the mini-batch.
        token_ids: int64 `[...]`, ids that do not depend on the layout, for the draw and for ties; see `select_tokens`.
        step: number of the update, mixed into the draw.
        tie_tolerance: covariances this close to kl_cov's cut, in nats, count as equal to it.

    """
    loss = loss_named(config.loss)
    if "covered" not in loss.columns:
        with_them = ", ".join(name for name, each in LOSSES.items() if "covered" in each.columns)
        raise ObjectiveError(f"objective.loss={config.loss} has no covariance tokens", hint=f"these have: {with_them}")
    refuse_other_shapes("logprob", logprob, {"advantage": advantage, "mask": mask, "token_ids": token_ids})
    refuse_other_than_flags({"mask": mask})
    marked_logprob, marked_advantage = logprob.detach()[mask].double(), advantage[mask].double()
    logprobs, advantages, count = global_sums(group, marked_logprob.sum(), marked_advantage.sum(), mask.sum())
    if not math.isfinite(logprobs + advantages):
        raise ObjectiveError(
            "logprob or advantage holds a value that is not finite, on some rank", hint="check the rewards"
        )
    if not count:
        return torch.zeros_like(mask)
    covariance = torch.zeros(mask.shape, dtype=torch.float64, device=mask.device)
    covariance[mask] = (marked_advantage - advantages / count) * (marked_logprob - logprobs / count)
    wanted = max(1, math.ceil(round(config.cov_share * count, 9)))
    eligible, available = mask, count
    if loss.covers == "random":
        eligible = mask & (covariance >= config.cov_low) & (covariance <= config.cov_high)
        (available,) = global_sums(group, eligible.sum())
        if available <= wanted:
            return eligible
    rule = SelectionConfig(
        tokens=loss.covers,
        rule="exact_k",
        # Half a token below `wanted`, so that rounding up gives it for any rounding of the quotient.
        ratio=(wanted - 0.5) / available,
        seed=_SEED,
    )
    return select_tokens(
        covariance, eligible, rule, group=group, token_ids=token_ids, step=step, tie_tolerance=tie_tolerance
    ).mask
