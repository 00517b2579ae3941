"""Columns that are computed before the first update of a rollout batch: log-probs, reference, values, advantages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_fork import objective
from megatron_fork.experience import Batch, Trajectory
from megatron_fork.policy.trained_models import TrainedModels


def prepared(shares: Sequence[Batch], networks: TrainedModels, config: objective.ObjectiveConfig) -> list[Batch]:
    """This rank's shares with every column that the objective reads; collective over all ranks."""
    filled = [_with_statistics(share, networks) for share in shares]
    if config.advantage == "gae":
        filled = _with_generalized_advantages(filled, config, networks)
    return filled


def candidates(share: Batch, config: objective.ObjectiveConfig) -> Tensor:
    """Candidates, bool `[response tokens]`; with overlong filtering, tokens of truncated responses are not candidates."""
    trained = [
        not (config.overlong.filter and isinstance(sequence, Trajectory) and sequence.finish_reason == "length")
        for sequence in share.sequences
    ]
    return torch.tensor(trained, dtype=torch.bool)[share.sequence_t]


def filled(column: Tensor | None) -> Tensor:
    """A column that `prepared` has filled."""
    assert column is not None, "the column is filled before it is read"
    return column


def _with_statistics(share: Batch, networks: TrainedModels) -> Batch:
    logprob_t, entropy_t, kept_entropy_t = networks.policy.replayed_statistics(share)
    columns = {"old_logprob_t": logprob_t, "logprob_t": logprob_t, "entropy_t": entropy_t}
    if networks.policy.kept_sets(share) is not None:
        columns["kept_entropy_t"] = kept_entropy_t
    if networks.reference is not None:
        columns["reference_logprob_t"] = networks.reference.statistics(share).logprob
    if networks.critic is not None:
        columns["value_t"] = networks.critic.values(share)
    return share.with_columns(**columns)


def _with_generalized_advantages(
    shares: Sequence[Batch], config: objective.ObjectiveConfig, networks: TrainedModels
) -> list[Batch]:
    """Per-token advantages from the critic's values, whitened over the whole rollout batch's candidates, and its targets."""
    estimated = [_estimated(share, config) for share in shares]
    whole_t = torch.cat([filled(share.advantage_t) for share in estimated])
    mask_t = torch.cat([candidates(share, config) for share in estimated])
    whitened = objective.whiten(whole_t, mask_t, networks.policy.layout.data)
    parts = whitened.split([share.response_tokens for share in estimated])
    return [share.with_columns(advantage_t=part_t) for share, part_t in zip(estimated, parts, strict=True)]


def _estimated(share: Batch, config: objective.ObjectiveConfig) -> Batch:
    """The share with advantages and returns; the reward is at the last token of a response."""
    reward_t = torch.zeros(share.response_tokens)
    last_t = torch.tensor(share.response_lengths, dtype=torch.long).cumsum(0) - 1
    reward_t[last_t] = filled(share.advantage_t)[last_t]
    advantage_t, return_t = objective.generalized_advantages(
        reward_t, filled(share.value_t), share.sequence_t, gamma=config.gae.gamma, lam=config.gae.lam
    )
    return share.with_columns(advantage_t=advantage_t, return_t=return_t)
