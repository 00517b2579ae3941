"""Trains on one rollout batch with a few optimizer steps: statistics, selection, update, and the metrics of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from megatron_fork import objective, selection
from megatron_fork.clock import Clock
from megatron_fork.distributed import collectives, device
from megatron_fork.errors import ConfigError, RolloutError
from megatron_fork.experience import Batch
from megatron_fork.policy.actor import LossFunction
from megatron_fork.policy.network import Update
from megatron_fork.policy.preparation import candidates, filled, prepared
from megatron_fork.policy.skipped_updates import SkippedUpdates
from megatron_fork.policy.step_result import LearningRates, StepResult
from megatron_fork.policy.trained_models import TrainedModels
from megatron_fork.policy.trained_tokens import accepted, trained_tokens
from megatron_fork.policy.update_metrics import (
    Metrics,
    of_critic_update,
    of_mismatch,
    of_responses,
    of_update,
    over_updates,
)

# Responses to one prompt share prefixes, and so whole runs of equal entropies. In float32 their last bits depend on the shapes
# of the batch, and a cut among them would choose by rounding noise, differently on every layout.
TIE_TOLERANCE = 1e-5


class Learner:
    """Trains the policy on the tokens that `selection` marks, and a critic on all candidates."""

    def __init__(
        self,
        models: TrainedModels,
        selection_config: selection.SelectionConfig,
        objective_config: objective.ObjectiveConfig,
        *,
        mismatch_limit: float,
        critic_epochs: int = 1,
        skips: SkippedUpdates | None = None,
    ) -> None:
        """`skips` counts updates that are not applied, and says how many may be; without it none may."""
        self.models = models
        self.policy = models.policy
        self.selection = selection_config
        self.objective = objective_config
        self.mismatch_limit = mismatch_limit
        self.critic_epochs = critic_epochs
        self.skips = skips or SkippedUpdates()
        self._group = models.policy.layout.data
        for needed, model, name in (
            (objective_config.advantage == "gae", models.critic, "advantage=gae needs a critic"),
            (objective_config.kl_coef > 0, models.reference, "kl_coef needs a reference policy"),
        ):
            if needed and model is None:
                raise ConfigError(f"objective.{name}", hint="build the learner with one")

    def step(
        self,
        mini_batches: Sequence[Batch],
        *,
        step: int,
        rates: LearningRates,
        clock: Clock,
        result: StepResult | None = None,
        stop_point: Callable[[], None] = lambda: None,
    ) -> StepResult:
        """One optimizer step per mini-batch; every rank passes the same mini-batches and takes its share.

        Args:
            mini_batches: the same on every rank.
            step: number of the trainer step.
            rates: learning rates of the step.
            clock: records the time of each part.
            result: filled in, update by update; what it holds of an interrupted step is not done again.
            stop_point: called before each update by every rank; if it raises, `result` can be saved.

        """
        result = StepResult() if result is None else result
        if not mini_batches:
            return result
        shares = [self.policy.share(batch) for batch in mini_batches]
        if result.is_begun:
            result.shares = [result.restored(share) for share in shares]
        else:
            shares = prepared(shares, self.models, self.objective)
            result.metrics = of_responses(mini_batches) | self._checked_against_engine(shares, step - 1)
            result.shares = shares
        clock.lap("statistics")
        for index in range(len(result.updates), len(shares)):
            stop_point()
            result.updates.append(self._update(result.shares, index, step, rates, clock))
            self.skips.check()
        self._train_critic(result, step, rates.critic, clock)
        result.metrics |= over_updates(result.updates, "update/skipped")
        result.metrics |= over_updates(result.critic_updates, "critic/skipped")
        return result

    def _update(
        self, shares: list[Batch], index: int, step: int, rates: LearningRates, clock: Clock
    ) -> dict[str, float]:
        """Select the tokens of one mini-batch and make its optimizer step; the metrics of both."""
        share, number = shares[index], step * len(shares) + index
        current = share
        if index > 0 and self.selection.entropy_policy != "old":
            logprob_t, entropy_t = self.policy.statistics(share)
            current = share.with_columns(logprob_t=logprob_t, entropy_t=entropy_t)
        chosen = self.select(current, number)
        clock.lap("statistics")
        shares[index] = current.with_columns(selected_t=chosen.mask)
        metrics = self._of_selection(chosen, current, share, number)
        if rates.policy:
            update = self.update(shares[index], chosen, number, learning_rate=rates.policy)
            self.skips.note("policy", update, f"step {step}, update {index + 1} of {len(shares)}")
            metrics |= of_update(update)
        clock.lap("update")
        return metrics

    def select(self, share: Batch, number: int) -> selection.Selection:
        """Which of this rank's response tokens carry gradient in update `number`; collective over the data ranks."""
        return selection.select_tokens(
            filled(share.entropy_t),
            candidates(share, self.objective),
            self.selection,
            group=self._group,
            segments=self._segments(share),
            token_ids=share.token_id_t,
            step=number,
            tie_tolerance=TIE_TOLERANCE,
            columns={
                "logprob": filled(share.logprob_t),
                "old_logprob": filled(share.old_logprob_t),
                "rollout_logprob": filled(share.rollout_logprob_t),
                "advantage": filled(share.advantage_t),
                "sequence": share.sequence_t,
                "response": share.number_t,
                "place": share.place_t,
            },
        )

    def update(self, share: Batch, chosen: selection.Selection, number: int, *, learning_rate: float) -> Update:
        """One optimizer step on the chosen tokens, or on all candidates if the loss trains those."""
        whole = objective.needs_whole_sequences(self.objective)
        return self.policy.update(
            *self._trained(share, chosen, number), learning_rate=learning_rate, whole_responses=whole
        )

    def gradient(self, share: Batch, chosen: selection.Selection, number: int) -> float:
        """Leave the gradient of `update` in the policy's gradient buffers, and return its norm; nothing is updated."""
        whole = objective.needs_whole_sequences(self.objective)
        return self.policy.gradient(*self._trained(share, chosen, number), whole_responses=whole)

    def _trained(self, share: Batch, chosen: selection.Selection, number: int) -> tuple[Batch, Tensor, LossFunction]:
        return trained_tokens(share, chosen, self.objective, number, TIE_TOLERANCE, self._group)

    def _train_critic(self, result: StepResult, step: int, learning_rate: float, clock: Clock) -> None:
        """Train the critic, after the policy, so that all advantages come from the same critic."""
        critic = self.models.critic
        if critic is None:
            return
        taught = [share for _ in range(self.critic_epochs) for share in result.shares]
        for index, share in enumerate(taught[len(result.critic_updates) :], len(result.critic_updates)):
            candidate_t = candidates(share, self.objective)
            weights = objective.token_weights(
                candidate_t, candidate_t, share.sequence_t, self.objective, group=self._group
            )

            def loss_of(
                values: Tensor, places: Tensor, share: Batch = share, weights: objective.TokenWeights = weights
            ) -> objective.PolicyLoss:
                where = values.device
                return objective.value_loss(
                    values,
                    filled(share.value_t)[places].to(where),
                    filled(share.return_t)[places].to(where),
                    torch.ones_like(values, dtype=torch.bool),
                    self.objective,
                    normalizer=weights.normalizer,
                    weight=None if weights.weight is None else weights.weight[places].to(where),
                )

            update = critic.update(share, candidate_t, loss_of, learning_rate=learning_rate)
            self.skips.note("critic", update, f"step {step}, update {index + 1} of {len(taught)}")
            result.critic_updates.append(of_critic_update(update))
            self.skips.check()
        clock.lap("critic")

    def _segments(self, share: Batch) -> Tensor | None:
        segment = selection.SCOPES[self.selection.scope or ""].segment
        if segment is None:
            return None
        if segment == "sequence":
            return share.sequence_t
        segment_t = torch.zeros(share.response_tokens, dtype=torch.long)
        for index, micro_batch in enumerate(self.policy.micro_batches(share)):
            segment_t[micro_batch.place_r] = index
        return segment_t

    def _checked_against_engine(self, shares: Sequence[Batch], version: int) -> Metrics:
        """Metrics of how far the engine's log-probs are from the trainer's; raises `RolloutError` above the limit.

        The limit applies to tokens drawn with the weights of `version`, which the policy has now; older weights differ anyway.
        """
        sequence = self.objective.correction == "sequence"
        mismatch = objective.rollout_mismatch(
            torch.cat([filled(share.old_logprob_t) for share in shares]),
            torch.cat([filled(share.rollout_logprob_t) for share in shares]),
            self.objective,
            accepted=torch.cat([accepted(share, self.objective) for share in shares]) if sequence else None,
            fresh=torch.cat([share.drawn_by(version) for share in shares]),
            group=self._group,
        )
        if not mismatch.largest <= self.mismatch_limit:
            raise RolloutError(
                f"engine and trainer log-probs differ by {mismatch.largest:.3g} nats, more than "
                f"rollout.mismatch_limit={self.mismatch_limit}",
                hint="the engine has other weights or another temperature; raise the limit for bf16 engines",
            )
        return {**of_mismatch(mismatch), **self._entropies(shares, mismatch.tokens)}

    def _entropies(self, shares: Sequence[Batch], tokens: int) -> Metrics:
        """Of the whole softmax; and of that over the kept sets with their mean size, if the engine reported any."""
        sums = torch.zeros(4, dtype=torch.float64)
        for share in shares:
            sets = self.policy.kept_sets(share)
            sums[0] += filled(share.entropy_t).double().sum()
            if sets is not None:
                cut_t = sets.count_t > 0
                sums[1] += filled(share.kept_entropy_t).double().sum()
                sums[2] += torch.where(cut_t, sets.count_t, self.policy.hf_config.vocab_size).double().sum()
                sums[3] += len(cut_t)
        whole, kept, size, replayed = collectives.all_reduce_sum(sums.to(device()), self._group).tolist()
        metrics = {"entropy/mean": whole / max(1, tokens)}
        if replayed:
            metrics |= {"entropy/kept_mean": kept / replayed, "rollout/kept_tokens": size / replayed}
        return metrics

    def _of_selection(self, chosen: selection.Selection, current: Batch, old: Batch, number: int) -> Metrics:
        """Counts, the mean entropy of the chosen tokens, and their overlap with the old policy's choice."""
        by_old = chosen.mask if current is old else self.select(old, number).mask
        both = (chosen.mask & by_old).sum()
        sums = torch.stack([both.double(), filled(current.entropy_t)[chosen.mask].double().sum()]).to(device())
        overlap, entropy = collectives.all_reduce_sum(sums, self._group).tolist()
        selected = max(1, chosen.selected)
        return {
            "selection/threshold": chosen.threshold,
            "selection/selected": chosen.selected,
            "selection/candidates": chosen.candidates,
            "selection/fraction": chosen.selected / max(1, chosen.candidates),
            "selection/overlap_old": overlap / selected,
            "entropy/selected_mean": entropy / selected,
            **{f"selection/{name}": value for name, value in chosen.measures.items()},
        }
