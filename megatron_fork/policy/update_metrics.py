"""Metrics of updates, from their global sums."""

from __future__ import annotations

import math
from collections.abc import Sequence

from megatron_fork import objective
from megatron_fork.experience import Batch, Trajectory
from megatron_fork.policy.network import Update

Metrics = dict[str, float]


def of_responses(mini_batches: Sequence[Batch]) -> Metrics:
    """Of all responses of a step: mean reward, fraction that was cut at the length limit, tokens including prompts."""
    all_of_step = [each for batch in mini_batches for each in batch.sequences]
    responses = [each for each in all_of_step if isinstance(each, Trajectory)]
    if not responses:
        return {}
    return {
        "responses/reward": math.fsum(each.reward for each in responses) / len(responses),
        "responses/cut": sum(each.finish_reason == "length" for each in responses) / len(responses),
        "responses/tokens": sum(len(each.prompt.tokens) + len(each.response) for each in responses),
    }


def of_update(update: Update) -> Metrics:
    """Means over the trained tokens; for sums that count tokens these are fractions. Of one not applied, why it was not."""
    if not update.is_applied:
        return {"update/skipped": 1.0, "loss": update.loss, "gradient_norm": update.gradient_norm}
    tokens = max(1.0, update.sums["tokens"])
    return {
        "update/skipped": 0.0,
        "loss": update.loss,
        "gradient_norm": update.gradient_norm,
        "learning_rate": update.learning_rate,
        **({"experts/balance": update.balance} if update.balance else {}),
        "objective/ratio_mean": update.sums["ratio"] / tokens,
        **{
            f"objective/{name}": value / tokens
            for name, value in update.sums.items()
            if name not in ("ratio", "tokens")
        },
    }


def of_critic_update(update: Update) -> Metrics:
    """The loss, the fraction of clipped values, and 1 - Var(error) / Var(return): 1 predicts everything, 0 nothing."""
    if not update.is_applied:
        return {"critic/skipped": 1.0, "critic/loss": update.loss, "critic/gradient_norm": update.gradient_norm}
    sums, tokens = update.sums, max(1.0, update.sums["value_tokens"])

    def variance(name: str) -> float:
        return sums[f"{name}_square"] / tokens - (sums[name] / tokens) ** 2

    spread = variance("return")
    return {
        "critic/skipped": 0.0,
        "critic/loss": update.loss,
        "critic/gradient_norm": update.gradient_norm,
        "critic/clipped": sums["value_clipped"] / tokens,
        "critic/explained_variance": 1.0 - variance("value_error") / spread if spread > 1e-12 else math.nan,
    }


def of_mismatch(mismatch: objective.Mismatch) -> Metrics:
    return {
        "mismatch/max": mismatch.largest,
        "mismatch/mean": mismatch.mean,
        "mismatch/factor": mismatch.factor,
        "mismatch/k3": mismatch.k3,
        "mismatch/clipped": mismatch.clipped,
    }


def over_updates(seen: Sequence[Metrics], skipped: str) -> Metrics:
    """The mean of each metric over the updates that were applied, and how many were `skipped` if any might have been.

    Thresholds that are NaN (no cut) stay NaN.
    """
    # An update of an earlier version's checkpoint does not have this metric, nor one without a step of its network.
    made = [metrics for metrics in seen if not metrics.get(skipped)]
    means = {name: math.fsum(metrics[name] for metrics in made) / len(made) for name in (made[0] if made else {})}
    return means | ({skipped: float(len(seen) - len(made))} if skipped in means or len(made) < len(seen) else {})
