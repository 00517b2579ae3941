"""Chooses the responses that a page holds: evenly over sets, kinds, steps, right and wrong, within a budget of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_fork.analysis.page.responses import Facts


@dataclass(frozen=True)
class Budget:
    """How much a page holds; a response beyond `per_response` tokens is cut there."""

    responses: int = 2_000
    tokens: int = 2_000_000
    per_response: int = 32_768


def chosen(facts: Sequence[Facts], budget: Budget) -> list[int]:
    """Places of the responses to show, in order: all if they fit, else one from each stratum in turn.

    A stratum is of one set, kind, step and verdict. Strata take turns from both ends to the middle, and so do the responses of
    each, so that the first and the last step are there however small the budget.
    """
    strata: dict[tuple[str, str, int, int], list[int]] = {}
    for place, each in enumerate(facts):
        step = -1 if each.step is None else each.step
        strata.setdefault((each.set, each.kind, step, each.verdict), []).append(place)
    keys = sorted(strata)
    waiting = [[strata[key][place] for place in spread_order(len(strata[key]))] for key in keys]
    waiting = [waiting[place] for place in spread_order(len(waiting))]
    taken: list[int] = []
    tokens = 0
    for turn in range(max(map(len, waiting), default=0)):
        for stratum in waiting:
            if turn >= len(stratum):
                continue
            tokens += min(facts[stratum[turn]].length, budget.per_response)
            if len(taken) == budget.responses or (taken and tokens > budget.tokens):
                return sorted(taken)
            taken.append(stratum[turn])
    return sorted(taken)


def spread_order(count: int) -> list[int]:
    """The numbers below `count` in an order of which every beginning is spread evenly: the ends, then middles of gaps."""
    order = [0, count - 1][: min(count, 2)]
    gaps = [(0, count - 1)]
    while gaps:
        halves = []
        for first, last in gaps:
            middle = (first + last) // 2
            if middle > first:
                order.append(middle)
                halves += [(first, middle), (middle, last)]
        gaps = halves
    return order
