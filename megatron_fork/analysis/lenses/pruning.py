"""Functional importance by greedy pruning (arXiv 2601.03066): the order in which the tokens of a reasoning chain can go.

In each round every remaining token is left out once, and the one goes whose removal leaves the objective highest; the round in
which a token goes is its rank. Objectives of the authors' code: `answer`, log P(answer | question, rest), and its default
`chain_and_answer`, the mean log-prob of the rest and the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

Objective = Literal["answer", "chain_and_answer"]
# The objective of each chain, in nats.
ChainScore = Callable[[Sequence[Sequence[int]]], Sequence[float]]


def greedy_pruning(chain: Sequence[int], score: ChainScore, *, a_round: int = 1) -> list[int]:
    """`[tokens]`: the place of each token in the order of removal from 0; the last one to go is the most important.

    `a_round`: tokens that go at once, those whose single removals cost least; 1 is the paper's order. Of equal ones the first
    goes first.
    """
    rank = [0] * len(chain)
    remaining = list(range(len(chain)))
    gone = 0
    while remaining:
        scores = score([[chain[kept] for kept in remaining if kept != left_out] for left_out in remaining])
        order = sorted(range(len(remaining)), key=lambda place: (-scores[place], place))[:a_round]
        for place in order:
            rank[remaining[place]] = gone
            gone += 1
        removed = {remaining[place] for place in order}
        remaining = [each for each in remaining if each not in removed]
    return rank


def tokens_to_read(chain: int, around: int, *, a_round: int = 1) -> int:
    """Tokens that a model reads for a chain of `chain` tokens; `around`: those of question and answer beside it."""
    total, remaining = 0, chain
    while remaining > 0:
        total += remaining * (remaining - 1 + around)
        remaining -= a_round
    return total
