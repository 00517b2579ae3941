"""No group is ever trained on too late, whatever the order in which groups finish; and steps never starve."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_fork.experience import Prompt, Trajectory
from megatron_fork.rollout.in_flight import InFlightGroups, PromptGroup

PROMPT = Prompt(0, "", (1,), "")
ANSWER = Trajectory(0, PROMPT, (1,), (0.0,), "stop", 0)


def run(
    groups: int, staleness: int, steps: int, generator: random.Random, replaced: float = 0.0
) -> list[list[PromptGroup]]:
    """Steps whose groups finish in random order, some of them without signal."""
    in_flight, draws, taken = InFlightGroups(groups, staleness), iter(range(10**6)), []
    for version in range(steps):
        for _ in range(in_flight.room(training=False)):
            in_flight.add(PromptGroup(next(draws), PROMPT, version))
        step: list[PromptGroup] = []
        while len(step) < groups:
            waiting = [group for group in in_flight.groups.values() if not group.answers]
            assert waiting, "nothing is left to wait for, and the step is not full"
            group = generator.choice(waiting)
            if generator.random() < replaced:
                in_flight.remove(group)
                in_flight.add(PromptGroup(next(draws), PROMPT, version))
            else:
                group.answers[0] = ANSWER
            step += in_flight.take(1, version, groups - len(step))
        taken.append(step)
        assert len(in_flight.groups) == staleness * groups
        for _ in range(in_flight.room(training=True)):
            in_flight.add(PromptGroup(next(draws), PROMPT, version))
    return taken


@given(st.integers(1, 7), st.integers(0, 4), st.randoms(use_true_random=False), st.sampled_from([0.0, 0.3]))
@settings(max_examples=150, deadline=None)
def test_staleness_is_bounded_and_every_step_full(groups, staleness, generator, replaced) -> None:
    for version, step in enumerate(run(groups, staleness, 8, generator, replaced)):
        assert len(step) == groups
        assert all(version - staleness <= group.version <= version for group in step)


def test_younger_groups_go_first_where_there_is_room() -> None:
    """A straggler does not hold up a step as long as it finds a place in a later one."""
    in_flight = InFlightGroups(2, 1)
    for draw in range(4):
        in_flight.add(PromptGroup(draw, PROMPT, 0))
    for draw in (2, 3):
        in_flight.groups[draw].answers[0] = ANSWER
    assert [group.draw for group in in_flight.take(1, 0, 2)] == [2, 3]
    # Both that are left must go in the next step, so that nothing younger may.
    for draw in (4, 5):
        in_flight.add(PromptGroup(draw, PROMPT, 1, answers={0: ANSWER}))
    assert in_flight.take(1, 1, 2) == []
    for draw in (0, 1):
        in_flight.groups[draw].answers[0] = ANSWER
    assert [group.draw for group in in_flight.take(1, 1, 2)] == [0, 1]


def test_without_staleness_nothing_is_begun_ahead() -> None:
    in_flight = InFlightGroups(3, 0)
    assert in_flight.room(training=False) == 3 and in_flight.room(training=True) == 0
