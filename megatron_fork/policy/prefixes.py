"""Responses cut after their last trained token: what follows it has no gradient, and the backbone need not read it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from megatron_fork.experience import Batch, Demonstration, Trajectory


def prefixes(share: Batch, trained_t: Tensor) -> tuple[Batch, Tensor]:
    """This rank's share with every response cut after its last token in `trained_t`; responses without one are left out.

    Attention is causal, so that the tokens left have the log-probs that they had.

    Returns:
        the shorter sequences without columns, and the place of each of their response tokens in the columns of `share`, int64
        `[response tokens left]`.

    """
    sequences: list[Demonstration] = []
    places: list[Tensor] = [torch.zeros(0, dtype=torch.long)]
    start = 0
    for sequence, trained in zip(share.sequences, trained_t.split(share.response_lengths), strict=True):
        if trained.any():
            kept = int(trained.nonzero()[-1]) + 1
            sequences.append(_cut(sequence, kept))
            places.append(torch.arange(start, start + kept))
        start += len(trained)
    return Batch(sequences), torch.cat(places)


def _cut(sequence: Demonstration, kept: int) -> Demonstration:
    """The sequence with the first `kept` tokens of its response."""
    shorter = replace(sequence, response=sequence.response[:kept])
    if not isinstance(shorter, Trajectory):
        return shorter
    sets = None if shorter.kept is None else shorter.kept.copy()
    if sets is not None:
        sets.cut(kept)
    return replace(
        shorter,
        rollout_logprob=shorter.rollout_logprob[:kept],
        experts=None if shorter.experts is None else shorter.experts[: shorter.length],
        kept=sets,
        versions=tuple(span._replace(end=min(span.end, kept)) for span in shorter.versions if span.start < kept),
    )
