"""Which responses to a problem state the same answer, by the verifier's own equality, for majority voting.

Plain numbers are equal if their values are, as verifiers have it. Other answers are compared in the verifier's workers, where
a hostile one can do no harm; those of verifiers that take no answer as reference, and those that are neither plain numbers nor
among the most frequent, are compared as text alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_fork.rewards import RewardPool, compares_answers, number_in

# Answers of a problem that are compared with each other: their pairs are a few hundred.
MOST_COMPARED = 32


@dataclass(frozen=True)
class Ballot:
    """The answers to one problem: as stated, how many responses state it, and the mean reward of these."""

    answers: list[str]
    votes: list[int]
    right: list[float]


def ballots(problems: Sequence[Sequence[tuple[str | None, float]]], pool: RewardPool) -> list[Ballot]:
    """For each problem, its answers, the most frequent first.

    Args:
        problems: for each, the stated answer (None: none) and the reward of every response.
        pool: of the verifier; its equality is used.

    """
    kinds = [_by_text(problem) for problem in problems]
    pairs: list[tuple[int, int, int]] = []
    with pool.stream(warm=0) as stream:
        for place, groups in enumerate(kinds if compares_answers(pool.config.verifier) else ()):
            compared = [number for number, group in enumerate(groups) if isinstance(group.key, str)][:MOST_COMPARED]
            others = range(min(len(groups), MOST_COMPARED))
            for number in compared:
                for other in others:
                    if other < number or other not in compared:
                        stream.submit(rf"\boxed{{{groups[number].text}}}", groups[other].text)
                        pairs.append((place, number, other))
        scores = stream.results() if pairs else []
    for (place, number, other), score in zip(pairs, scores, strict=True):
        if score.value >= 1.0 and score.failure is None:
            kinds[place][number].join(kinds[place][other])
    return [_merged(groups) for groups in kinds]


class _Group:
    """Responses whose answers are the same text or number; `first` leads to the group that it is equal to."""

    def __init__(self, key: object, text: str) -> None:
        self.key, self.text = key, text
        self.rewards: list[float] = []
        self._equal_to: _Group = self

    def first(self) -> _Group:
        return self if self._equal_to is self else self._equal_to.first()

    def join(self, other: _Group) -> None:
        one, two = self.first(), other.first()
        if one is not two:
            one._equal_to = two


def _by_text(responses: Sequence[tuple[str | None, float]]) -> list[_Group]:
    found: dict[object, _Group] = {}
    for text, reward in responses:
        if text is None:
            continue
        number = number_in(text)
        key = " ".join(text.split()) if number is None else number
        found.setdefault(key, _Group(key, text)).rewards.append(reward)
    return sorted(found.values(), key=lambda group: (-len(group.rewards), group.text))


def _merged(groups: Sequence[_Group]) -> Ballot:
    members: dict[int, list[_Group]] = {}
    for group in groups:
        members.setdefault(id(group.first()), []).append(group)
    votes = Counter({key: sum(len(each.rewards) for each in same) for key, same in members.items()})
    order = [key for key, _ in votes.most_common()]
    rewards = {key: [reward for each in members[key] for reward in each.rewards] for key in order}
    return Ballot(
        [members[key][0].text for key in order],
        [votes[key] for key in order],
        [sum(rewards[key]) / len(rewards[key]) for key in order],
    )
