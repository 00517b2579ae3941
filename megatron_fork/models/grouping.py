"""Sequences of a packed row that local attention computes together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Tokens and padding of a group together may be at most this many times its tokens.
PADDING_LIMIT = 1.3


@dataclass(frozen=True)
class SequenceGroup:
    """Consecutive sequences that share one kernel call."""

    start: int
    lengths: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


def group_by_length(lengths: Sequence[int]) -> list[SequenceGroup]:
    """Split a packed row into runs of consecutive sequences whose padded size stays within the limit."""
    groups: list[SequenceGroup] = []
    start = 0
    run: list[int] = []
    for length in lengths:
        longest = max([*run, length])
        if run and longest * (len(run) + 1) > PADDING_LIMIT * (sum(run) + length):
            groups.append(SequenceGroup(start, tuple(run)))
            start, run = start + sum(run), []
        run.append(length)
    return [*groups, SequenceGroup(start, tuple(run))]
