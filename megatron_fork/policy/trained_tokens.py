"""Which tokens of a rank's share an update trains on, and their loss: what each weighs, and the columns that the loss reads."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_fork import objective, selection
from megatron_fork.distributed.collectives import Group
from megatron_fork.experience import Batch
from megatron_fork.policy.actor import LossFunction
from megatron_fork.policy.prefixes import prefixes
from megatron_fork.policy.preparation import candidates, filled
from megatron_fork.vocab_parallel import TokenStatistics


def trained_tokens(
    share: Batch,
    chosen: selection.Selection,
    config: objective.ObjectiveConfig,
    number: int,
    tie_tolerance: float,
    group: Group,
) -> tuple[Batch, Tensor, LossFunction]:
    """What the model reads in an update, which of its response tokens are trained on, and their loss.

    Args:
        share: this rank's part of the mini-batch, with its statistics.
        chosen: what was selected of it.
        config: of the objective.
        number: of the update, by which random choices differ.
        tie_tolerance: in nats.
        group: the data ranks; the loss is normalised over all of them.

    Returns:
        The share, or the prefixes of its responses that hold all trained tokens; bool `[response tokens]` of that; the loss.

    """
    candidate_t = candidates(share, config)
    trained_t = candidate_t if objective.loss_named(config.loss).trains == "candidates" else chosen.mask
    counted_t = trained_t if chosen.counted is None else chosen.counted
    weights = objective.token_weights(counted_t, candidate_t, share.sequence_t, config, group=group)
    columns = _columns(share, chosen, counted_t, config, number, tie_tolerance, group)
    for weight_t in (weights.weight, chosen.weight):
        if weight_t is not None:
            columns["weight"] = columns["weight"] * weight_t if "weight" in columns else weight_t

    def loss_of(statistics: TokenStatistics, places: Tensor) -> objective.PolicyLoss:
        where = statistics.logprob.device
        return objective.policy_loss(
            statistics.logprob,
            mask=torch.ones_like(statistics.logprob, dtype=torch.bool),
            config=config,
            normalizer=weights.normalizer,
            entropy=statistics.entropy,
            **{name: column_t[places].to(where) for name, column_t in columns.items()},
        )

    if chosen.counted is None:
        return share, trained_t, loss_of
    read, place_t = prefixes(share, trained_t)
    return read, trained_t[place_t], lambda statistics, places: loss_of(statistics, place_t[places])


def accepted(share: Batch, config: objective.ObjectiveConfig) -> Tensor:
    """Bool `[response tokens]`: of responses that `objective.correction=sequence` keeps."""
    return objective.accepted_responses(
        filled(share.old_logprob_t), filled(share.rollout_logprob_t), share.sequence_t, config
    )


def _columns(
    share: Batch,
    chosen: selection.Selection,
    counted_t: Tensor,
    config: objective.ObjectiveConfig,
    number: int,
    tie_tolerance: float,
    group: Group,
) -> dict[str, Tensor]:
    """The columns that `policy_loss` reads, by the names of its arguments; `counted_t` is what denominators count."""
    needed = objective.loss_named(config.loss).columns
    columns = {
        "old_logprob": filled(share.old_logprob_t),
        "advantage": filled(share.advantage_t),
        "rollout_logprob": filled(share.rollout_logprob_t),
    }
    if config.kl_coef:
        columns["reference_logprob"] = filled(share.reference_logprob_t)
    if "sequence" in needed:
        columns["sequence"] = share.sequence_t
    if "forking" in needed:
        columns["forking"] = chosen.mask
    if config.correction == "sequence":
        columns["accepted"] = accepted(share, config)
    if "covered" in needed:
        columns["covered"] = objective.covariance_tokens(
            filled(share.logprob_t),
            filled(share.advantage_t),
            counted_t,
            config,
            group=group,
            token_ids=share.token_id_t,
            step=number,
            tie_tolerance=tie_tolerance,
        )
    return columns
