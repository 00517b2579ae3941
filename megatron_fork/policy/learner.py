"""One rollout batch into a few optimizer steps: statistics, selection, update, and the metrics of each."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_fork import objective, selection
from megatron_fork.clock import Clock
from megatron_fork.distributed import collectives, device
from megatron_fork.errors import RolloutError
from megatron_fork.experience import Batch, Trajectory
from megatron_fork.policy.actor import Policy
from megatron_fork.policy.network import Update
from megatron_fork.vocab_parallel import TokenStatistics

Metrics = dict[str, float]

# Responses to one prompt share prefixes, and so whole runs of equal entropies. In float32 these differ in the last bits with
# the shapes of the batch, and a cut that falls among them would choose by rounding noise, differently on every layout.
_TIE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Lesson:
    """What a step taught: metrics over all ranks, and this rank's shares with their columns, for traces."""

    metrics: Metrics
    shares: list[Batch]


class Learner:
    """Trains the policy on the tokens that `selection` marks."""

    def __init__(
        self,
        policy: Policy,
        selection_config: selection.Config,
        objective_config: objective.Config,
        *,
        mismatch_limit: float,
    ) -> None:
        self.policy = policy
        self.selection = selection_config
        self.objective = objective_config
        self.mismatch_limit = mismatch_limit

    def learn(self, mini_batches: Sequence[Batch], *, step: int, learning_rate: float, clock: Clock) -> Lesson:
        """One optimizer step a mini-batch; every rank passes the same mini-batches and takes its share."""
        shares = [self._with_old_statistics(self.policy.share(mini_batch)) for mini_batch in mini_batches]
        metrics = self._mismatch(shares)
        clock.lap("statistics")
        seen: list[Metrics] = []
        for index, share in enumerate(shares):
            current = share if index == 0 or self.selection.entropy_policy == "old" else self._current_entropy(share)
            number = step * len(shares) + index
            chosen = self.select(current, number)
            clock.lap("statistics")
            shares[index] = current.with_columns(selected_t=chosen.mask)
            update = self.update(shares[index], chosen, learning_rate=learning_rate)
            seen.append({**_of_update(update), **self._of_selection(chosen, current, share, number)})
            clock.lap("update")
        return Lesson({**metrics, **_mean(seen)}, shares)

    def select(self, share: Batch, number: int) -> selection.Selection:
        """Which of this rank's response tokens carry gradient in update `number`; collective over the data ranks."""
        assert share.entropy_t is not None
        return selection.select_tokens(
            share.entropy_t,
            self._candidates(share),
            self.selection,
            group=self.policy.layout.data,
            segments=self._segments(share),
            token_ids=share.token_id_t,
            step=number,
            tie_tolerance=_TIE_TOLERANCE,
        )

    def update(self, share: Batch, chosen: selection.Selection, *, learning_rate: float) -> Update:
        """One optimizer step on the chosen tokens, normalised by their global count or by that of all candidates."""
        old_logprob_t, advantage_t, rollout_logprob_t = share.old_logprob_t, share.advantage_t, share.rollout_logprob_t
        assert old_logprob_t is not None and advantage_t is not None and rollout_logprob_t is not None
        count = chosen.selected if self.objective.denominator == "selected" else chosen.candidates

        def loss_of(statistics: TokenStatistics, places: Tensor) -> objective.PolicyLoss:
            where = statistics.logprob.device
            return objective.policy_loss(
                statistics.logprob,
                old_logprob_t[places].to(where),
                advantage_t[places].to(where),
                torch.ones_like(statistics.logprob, dtype=torch.bool),
                self.objective,
                normalizer=max(1, count),
                entropy=statistics.entropy,
                rollout_logprob=rollout_logprob_t[places].to(where),
            )

        return self.policy.update(share, chosen.mask, loss_of, learning_rate=learning_rate)

    def _with_old_statistics(self, share: Batch) -> Batch:
        statistics = self.policy.statistics(share)
        return share.with_columns(old_logprob_t=statistics.logprob, entropy_t=statistics.entropy)

    def _current_entropy(self, share: Batch) -> Batch:
        return share.with_columns(entropy_t=self.policy.statistics(share).entropy)

    def _candidates(self, share: Batch) -> Tensor:
        """Response tokens; those of truncated responses are none where overlong filtering is on."""
        trained = [
            not (
                self.objective.overlong.filter
                and isinstance(sequence, Trajectory)
                and sequence.finish_reason == "length"
            )
            for sequence in share.sequences
        ]
        return torch.tensor(trained, dtype=torch.bool)[share.sequence_t]

    def _segments(self, share: Batch) -> Tensor | None:
        if self.selection.scope == "sequence":
            return share.sequence_t
        if self.selection.scope == "minibatch":
            return None
        segment_t = torch.zeros(share.response_tokens, dtype=torch.long)
        for index, micro_batch in enumerate(self.policy.micro_batches(share)):
            segment_t[micro_batch.place_r] = index
        return segment_t

    def _mismatch(self, shares: Sequence[Batch]) -> Metrics:
        """How far the engine's log-probs are from the trainer's; stops the run beyond the limit."""
        difference = torch.cat([_column(share.old_logprob_t) - _column(share.rollout_logprob_t) for share in shares])
        entropy = torch.cat([_column(share.entropy_t) for share in shares])
        group = self.policy.layout.data
        most = difference.abs().max() if difference.numel() else torch.zeros(())
        largest = float(collectives.all_reduce_max(most.to(device()), group))
        k3 = torch.expm1(difference) - difference
        sums = torch.stack([difference.abs().sum(), k3.sum(), entropy.sum(), torch.tensor(float(difference.numel()))])
        mean, k3_mean, entropy_mean, count = collectives.all_reduce_sum(sums.double().to(device()), group).tolist()
        if not largest <= self.mismatch_limit:
            raise RolloutError(
                f"engine and trainer log-probs differ by {largest:.3g} nats, more than "
                f"rollout.mismatch_limit={self.mismatch_limit}",
                hint="the engine holds other weights or another temperature; raise the limit for bf16 engines",
            )
        count = max(count, 1.0)
        return {
            "mismatch/max": largest,
            "mismatch/mean": mean / count,
            "mismatch/k3": k3_mean / count,
            "entropy/mean": entropy_mean / count,
        }

    def _of_selection(self, chosen: selection.Selection, current: Batch, old: Batch, number: int) -> Metrics:
        """Counts, the mean entropy of what was chosen, and its overlap with what the old policy would have chosen."""
        by_old = chosen.mask if current is old else self.select(old, number).mask
        both = (chosen.mask & by_old).sum()
        sums = torch.stack([both.double(), _column(current.entropy_t)[chosen.mask].double().sum()]).to(device())
        overlap, entropy = collectives.all_reduce_sum(sums, self.policy.layout.data).tolist()
        selected = max(1, chosen.selected)
        return {
            "selection/threshold": chosen.threshold,
            "selection/selected": chosen.selected,
            "selection/candidates": chosen.candidates,
            "selection/fraction": chosen.selected / max(1, chosen.candidates),
            "selection/overlap_old": overlap / selected,
            "entropy/selected_mean": entropy / selected,
        }


def split_into_mini_batches(
    trajectories: Sequence[Trajectory], groups_each: int, *, group_size: int, seed: int
) -> list[Batch]:
    """Shuffle whole groups into mini-batches of `groups_each`; a short remainder is a mini-batch of its own."""
    groups = [trajectories[first : first + group_size] for first in range(0, len(trajectories), group_size)]
    random.Random(seed).shuffle(groups)
    chunks = [groups[first : first + groups_each] for first in range(0, len(groups), groups_each)]
    return [Batch.of_trajectories([trajectory for group in chunk for trajectory in group]) for chunk in chunks]


def _column(column: Tensor | None) -> Tensor:
    assert column is not None, "the statistics pass fills every column before it is read"
    return column


def _of_update(update: Update) -> Metrics:
    tokens = max(1.0, update.sums["tokens"])
    return {
        "loss": update.loss,
        "gradient_norm": update.gradient_norm,
        "learning_rate": update.learning_rate,
        "objective/ratio_mean": update.sums["ratio"] / tokens,
        **{
            f"objective/{name}": value / tokens
            for name, value in update.sums.items()
            if name not in ("ratio", "tokens")
        },
    }


def _mean(seen: Sequence[Metrics]) -> Metrics:
    """The mean over updates of each metric; NaN thresholds (nothing cut) stay NaN."""
    return {name: math.fsum(metrics[name] for metrics in seen) / len(seen) for name in (seen[0] if seen else {})}
