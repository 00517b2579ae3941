"""The names that other trainers give to what is measured here, for `run.metric_aliases`: their charts then show these runs too.

Only what is the same quantity has a name of theirs. docs/run-folder.md says of each over what it is taken, and what has none.
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


# Of a training step: their full name, as their loggers have it, and how it comes from ours and the count of ranks.
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
    """Under whose names a run's metrics are written as well; `ranks` of the trainer share the work of a step."""

    peers: Sequence[Peer] = ()
    ranks: int = 1

    def all(self) -> list[str]:
        return [name for peer in self.peers for name in ALIASES[peer]]

    def of(self, stage: str, metrics: Metrics) -> dict[str, float]:
        """The metrics of a step of training under their names, as far as they are there; none of another stage."""
        found = {}
        for peer in self.peers if stage == "train" else ():
            for name, value in ALIASES[peer].items():
                try:
                    found[name] = value(metrics, self.ranks)
                except KeyError:
                    continue  # a step without signal has no update
        return found
