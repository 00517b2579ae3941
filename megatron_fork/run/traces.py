"""The traced responses of a step and of an evaluation, as rows of their trace files.

Responses that were not trained on (of groups without signal, of evaluations) have no entropy, only what the engine and the
verifier returned.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from megatron_fork.analysis import mixture
from megatron_fork.data import PromptSource
from megatron_fork.distributed import collectives
from megatron_fork.experience import Batch, Trajectory
from megatron_fork.rewards import read_reference
from megatron_fork.traces import Kind, TokenTexts, TracedResponse, traced

# Gathered at a time, over all ranks: 9 bytes each.
_TOKENS_PER_PIECE = 1 << 20
_Columns = tuple[Any, Any, Any]
"""Entropy and log-prob in nats, float32, and whether the token was selected, of one response."""


class RowsOf:
    """Makes the rows of one file from trajectories of a step, or of the evaluation after it."""

    def __init__(self, source: PromptSource, kind: Kind, *, set: str, step: int, samples: int) -> None:
        """`set`: name of the prompt set; `samples`: responses to each prompt."""
        self._source, self._texts = source, TokenTexts(source.tokenizer)
        self._kind, self._set, self._step, self._samples = kind, set, step, samples

    def row(self, trajectory: Trajectory, **columns: Any) -> TracedResponse:
        prompt = trajectory.prompt.tokens
        return traced(
            trajectory,
            self._texts.of(trajectory.response, after=prompt[-1] if prompt else None),
            set=self._set,
            prompt_id=self._source.prompt_id(trajectory.prompt),
            answer=str(read_reference(trajectory.prompt.answer)),
            sample=trajectory.number % self._samples,
            kind=self._kind,
            step=self._step,
            **columns,
        )


def trained_responses(
    trajectories: Sequence[Trajectory],
    shares: Sequence[Batch],
    rows: RowsOf,
    *,
    count: int | None,
    seed: int,
    group: collectives.Group,
) -> Iterator[TracedResponse]:
    """`count` of the trajectories, or all, drawn with a seed, in the order of their numbers.

    Collective over `group`: every rank goes through it to its end, and the first one gets the rows. No rank holds the columns
    of more than a piece of the step.
    """
    own = _places(shares)
    for piece in pieces(chosen(trajectories, count, seed)):
        mine = {each.number: _columns(shares, *own[each.number]) for each in piece if each.number in own}
        found = {number: of for part in collectives.gather_objects_to_first(mine, group) for number, of in part.items()}
        for trajectory in piece if found else []:
            entropy, logprob, selected = found[trajectory.number]
            yield rows.row(trajectory, entropy=entropy, logprob=logprob, selected=selected)


def untrained_responses(
    responses: Sequence[Trajectory], rows: RowsOf, *, count: int | None
) -> Iterator[TracedResponse]:
    """At most `count` responses that were not trained on, right and wrong ones mixed."""
    few = responses if count is None else mixture(responses, count, lambda response: response.reward > 0)
    return (rows.row(response) for response in few)


def chosen(trajectories: Sequence[Trajectory], count: int | None, seed: int) -> list[Trajectory]:
    """`count` of the trajectories, or all, by their numbers; the same on every rank."""
    by_number = {each.number: each for each in trajectories}
    numbers = sorted(by_number)
    if count is not None:
        numbers = sorted(random.Random(seed).sample(numbers, min(count, len(numbers))))
    return [by_number[number] for number in numbers]


def pieces(trajectories: Sequence[Trajectory]) -> Iterator[list[Trajectory]]:
    """The trajectories in order, in lists of about as many tokens as are gathered at a time, at least one each."""
    piece: list[Trajectory] = []
    tokens = 0
    for trajectory in trajectories:
        if piece and tokens + len(trajectory.response) > _TOKENS_PER_PIECE:
            yield piece
            piece, tokens = [], 0
        piece.append(trajectory)
        tokens += len(trajectory.response)
    if piece:
        yield piece


def _places(shares: Sequence[Batch]) -> dict[int, tuple[int, slice]]:
    """Of each sequence's number: which of the shares has it, and which of its tokens they are."""
    found = {}
    for index, share in enumerate(shares):
        start = 0
        for sequence in share.sequences:
            found[sequence.number] = (index, slice(start, start + len(sequence.response)))
            start += len(sequence.response)
    return found


def _columns(shares: Sequence[Batch], index: int, tokens: slice) -> _Columns:
    share = shares[index]
    assert share.entropy_t is not None and share.selected_t is not None and share.old_logprob_t is not None
    return (
        share.entropy_t[tokens].numpy().astype(np.float32),
        share.old_logprob_t[tokens].numpy().astype(np.float32),
        share.selected_t[tokens].numpy().copy(),
    )
