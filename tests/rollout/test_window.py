"""No group is ever trained on too late, whatever the order in which groups finish; and steps never starve."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_fork.experience import Prompt, Trajectory
from megatron_fork.rollout.window import Group, Window

PROMPT = Prompt(0, "", (1,), "")
ANSWER = Trajectory(0, PROMPT, (1,), (0.0,), "stop", 0)


def run(groups: int, staleness: int, steps: int, generator: random.Random, replaced: float = 0.0) -> list[list[Group]]:
    """Steps whose groups finish in random order, some of them without signal."""
    window, draws, taken = Window(groups, staleness), iter(range(10**6)), []
    for version in range(steps):
        for _ in range(window.room(training=False)):
            window.add(Group(next(draws), PROMPT, version))
        step: list[Group] = []
        while len(step) < groups:
            waiting = [group for group in window.groups.values() if not group.answers]
            assert waiting, "nothing is left to wait for, and the step is not full"
            group = generator.choice(waiting)
            if generator.random() < replaced:
                window.remove(group)
                window.add(Group(next(draws), PROMPT, version))
            else:
                group.answers[0] = ANSWER
            step += window.take(1, version, groups - len(step))
        taken.append(step)
        assert len(window.groups) == staleness * groups
        for _ in range(window.room(training=True)):
            window.add(Group(next(draws), PROMPT, version))
    return taken


@given(st.integers(1, 7), st.integers(0, 4), st.randoms(use_true_random=False), st.sampled_from([0.0, 0.3]))
@settings(max_examples=150, deadline=None)
def test_staleness_is_bounded_and_every_step_full(groups, staleness, generator, replaced) -> None:
    for version, step in enumerate(run(groups, staleness, 8, generator, replaced)):
        assert len(step) == groups
        assert all(version - staleness <= group.version <= version for group in step)


def test_younger_groups_go_first_where_there_is_room() -> None:
    """A straggler does not hold up a step as long as it finds a place in a later one."""
    window = Window(2, 1)
    for draw in range(4):
        window.add(Group(draw, PROMPT, 0))
    for draw in (2, 3):
        window.groups[draw].answers[0] = ANSWER
    assert [group.draw for group in window.take(1, 0, 2)] == [2, 3]
    # Both that are left must go in the next step, so that nothing younger may.
    for draw in (4, 5):
        window.add(Group(draw, PROMPT, 1, answers={0: ANSWER}))
    assert window.take(1, 1, 2) == []
    for draw in (0, 1):
        window.groups[draw].answers[0] = ANSWER
    assert [group.draw for group in window.take(1, 1, 2)] == [0, 1]


def test_without_staleness_nothing_is_begun_ahead() -> None:
    window = Window(3, 0)
    assert window.room(training=False) == 3 and window.room(training=True) == 0
