"""The names that other trainers give to the same metrics, for `run.metric_aliases`: their charts then show these runs too.

Only the same quantity gets such a name. docs/run-folder.md says what each is averaged over, and which metrics have no alias.
Sources: verl's `compute_data_metrics`, `compute_throughout_metrics` and `compute_policy_loss`; NeMo-RL's `ClippedPGLossFn`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Metrics = Mapping[str, float]
Peer = Literal["verl", "nemo_rl"]


def _named(name: str) -> Callable[[Metrics, int], float]:
    return lambda metrics, ranks: metrics[name]


# Metrics of a trainer step: the full name in their loggers, and how to compute it from our metrics and the number of ranks.
ALIASES: dict[Peer, dict[str, Callable[[Metrics, int], float]]] = {
    "verl": {
        "actor/entropy": _named("entropy/mean"),
        "actor/ppo_kl": _named("objective/k1"),
        "actor/pg_loss": lambda metrics, ranks: -metrics["objective/surrogate"],
        "actor/pg_clipfrac": lambda metrics, ranks: (
            metrics["objective/clipped_low"] + metrics["objective/clipped_high"]
        ),
        "actor/pg_clipfrac_lower": _named("objective/dual_clipped"),
        "actor/grad_norm": _named("gradient_norm"),
        "actor/lr": _named("learning_rate"),
        "critic/score/mean": _named("responses/reward"),
        "critic/rewards/mean": _named("responses/reward"),
        "response_length/mean": _named("rollout/response_tokens"),
        "response_length/clip_ratio": _named("responses/cut"),
        "timing_s/gen": _named("time/rollout"),
        "timing_s/step": _named("time/step"),
        "timing_s/update_actor": _named("time/update"),
        "timing_s/update_weights": _named("time/synchronise"),
        "perf/mfu/actor": _named("update/mfu"),
        "perf/time_per_step": _named("time/step"),
        "perf/total_num_tokens": _named("responses/tokens"),
        "perf/throughput": lambda metrics, ranks: metrics["responses/tokens"] / (metrics["time/step"] * ranks),
    },
    "nemo_rl": {
        "train/token_mult_prob_error": _named("mismatch/factor"),
        "train/gen_kl_error": _named("mismatch/k3"),
        "train/probs_ratio": _named("objective/ratio_mean"),
        "train/grad_norm": _named("gradient_norm"),
        "train/lr": _named("learning_rate"),
        "train/reward": _named("responses/reward"),
    },
}


@dataclass(frozen=True)
class PeerNames:
    """The trainers under whose names metrics are also written; `ranks`: how many ranks share the work of a step."""

    peers: Sequence[Peer] = ()
    ranks: int = 1

    def all(self) -> list[str]:
        return [name for peer in self.peers for name in ALIASES[peer]]

    def of(self, stage: str, metrics: Metrics) -> dict[str, float]:
        """A trainer step's metrics under the peers' names, as far as they exist; empty for other stages."""
        found = {}
        for peer in self.peers if stage == "train" else ():
            for name, value in ALIASES[peer].items():
                try:
                    found[name] = value(metrics, self.ranks)
                except KeyError:
                    continue  # a step without signal has no update
        return found
