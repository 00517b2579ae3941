"""Metrics of updates, from their global sums."""

from __future__ import annotations

import math
from collections.abc import Sequence

from megatron_fork import objective
from megatron_fork.policy.network import Update

Metrics = dict[str, float]


def of_update(update: Update) -> Metrics:
    """Means over the trained tokens, shares where a sum counts tokens."""
    tokens = max(1.0, update.sums["tokens"])
    return {
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
    """The loss, the share of clipped values, and 1 - Var(error) / Var(return): 1 foresees all, 0 nothing."""
    sums, tokens = update.sums, max(1.0, update.sums["value_tokens"])

    def variance(name: str) -> float:
        return sums[f"{name}_square"] / tokens - (sums[name] / tokens) ** 2

    spread = variance("return")
    return {
        "critic/loss": update.loss,
        "critic/gradient_norm": update.gradient_norm,
        "critic/clipped": sums["value_clipped"] / tokens,
        "critic/explained_variance": 1.0 - variance("value_error") / spread if spread > 1e-12 else math.nan,
    }


def of_mismatch(mismatch: objective.Mismatch) -> Metrics:
    return {
        "mismatch/max": mismatch.largest,
        "mismatch/mean": mismatch.mean,
        "mismatch/k3": mismatch.k3,
        "mismatch/clipped": mismatch.clipped,
    }


def mean(seen: Sequence[Metrics]) -> Metrics:
    """The mean over updates of each metric; NaN thresholds (nothing cut) stay NaN."""
    return {name: math.fsum(metrics[name] for metrics in seen) / len(seen) for name in (seen[0] if seen else {})}
