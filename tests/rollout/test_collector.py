"""Every step gets its groups: those without signal are replaced, draws go on where they stopped, nothing counts twice."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.parity import parity_pool
from support.stop_points import stops_where

from megatron_fork import evaluation, rewards, rollout
from megatron_fork.errors import StopRequested
from megatron_fork.experience import Trajectory
from megatron_fork.rollout import Collector
from megatron_fork.rollout.signal_share import SignalShare, draws_to_come


def collector(parts, groups: int, **settings) -> Collector:
    source, engine = parts
    config = rollout.RolloutConfig(samples=3, max_response_tokens=8, **settings)
    return Collector(config, engine, source, parity_pool(), groups=groups, world=None, seed=4)


def test_groups_without_signal_are_replaced(parts) -> None:
    rollouts = collector(parts, 6, max_rounds=50).collect(start=0, version=0)
    assert rollouts.groups_kept == 6 and rollouts.groups_sampled >= 6 and rollouts.rounds >= 1
    assert rollouts.prompts_drawn == rollouts.groups_sampled
    assert [trajectory.number for trajectory in rollouts.trajectories] == list(range(18))
    for first in range(0, 18, 3):
        group = rollouts.trajectories[first : first + 3]
        assert len({trajectory.prompt.index for trajectory in group}) == 1
        assert len({trajectory.reward for trajectory in group}) == 2


def round_by_round(drawer: Collector, start: int) -> tuple[list[list[int]], int, int, float]:
    """(responses kept, draws, rounds, mean reward) of replacing what has no signal one round after the other."""
    kept, drawn, rounds, rewards_seen = [], 0, 0, []
    while len(kept) < drawer.groups and rounds < drawer.config.max_rounds:
        prompts = drawer.source.draw(drawer.groups - len(kept), start=start + drawn, seed=drawer.seed)
        answers = drawer.sample(prompts, drawer.config.samples, first_draw=start + drawn)
        drawn, rounds = drawn + len(prompts), rounds + 1
        rewards_seen += [answer.reward for answer in answers]
        groups = [answers[first : first + 3] for first in range(0, len(answers), 3)]
        kept += [group for group in groups if len({answer.reward for answer in group}) > 1]
    responses = [list(answer.response) for group in kept for answer in group]
    return responses, drawn, rounds, sum(rewards_seen) / len(rewards_seen)


@pytest.mark.parametrize("max_rounds", [1, 2, 50])
@pytest.mark.parametrize("start", [0, 37, 911])
@pytest.mark.parametrize("seen", [SignalShare(), SignalShare(200.0, 10.0), SignalShare(40.0, 40.0)])
def test_drawing_ahead_gives_what_rounds_one_by_one_give(parts, start: int, max_rounds: int, seen) -> None:
    drawer = collector(parts, 6, max_rounds=max_rounds)
    asked: list[int] = []
    sample = drawer.sample
    drawer.sample = lambda prompts, *rest, **options: asked.append(len(prompts)) or sample(prompts, *rest, **options)
    found = drawer.collect(start=start, version=0, seen=seen)
    batches = len(asked)
    assert found.calls == batches and found.surplus == sum(asked) - found.prompts_drawn
    responses, drawn, rounds, mean = round_by_round(drawer, start)
    assert [list(trajectory.response) for trajectory in found.trajectories] == responses
    assert (found.prompts_drawn, found.groups_sampled, found.rounds) == (drawn, drawn, rounds)
    assert found.mean_reward == pytest.approx(mean)
    assert batches <= rounds


@given(missing=st.integers(1, 64), share=st.floats(1e-3, 1.0), rounds=st.integers(1, 20))
def test_at_least_the_next_round_and_never_more_than_all_rounds(missing: int, share: float, rounds: int) -> None:
    assert missing <= draws_to_come(missing, share, rounds) <= missing * rounds
    assert draws_to_come(missing, 1.0, rounds) == missing


class Answering(Collector):
    """Draws no responses: group i has signal where the i-th of `signals` is true. Notes how many groups a call asks for."""

    def __init__(self, parts, signals: list[bool], groups: int, max_rounds: int) -> None:
        source, engine = parts
        config = rollout.RolloutConfig(samples=2, max_rounds=max_rounds)
        super().__init__(config, engine, source, parity_pool(), groups=groups, world=None, seed=4)
        self.signals, self.asked = signals, []

    def _draw_groups(self, count: int, first_draw: int) -> list[list[Trajectory]]:
        self.asked.append(count)
        return [
            [self._trajectory(draw, 0.0), self._trajectory(draw, float(self.signals[draw]))]
            for draw in range(first_draw, first_draw + count)
        ]

    def _trajectory(self, draw: int, reward: float) -> Trajectory:
        (prompt,) = self.source.draw(1, start=draw, seed=self.seed)
        return Trajectory(draw, prompt, (draw,), (0.0,), "stop", 0, reward=reward)


@given(
    signals=st.lists(st.booleans(), min_size=200, max_size=200),
    groups=st.integers(1, 10),
    max_rounds=st.integers(1, 10),
    judged=st.floats(0.0, 300.0),
    share=st.floats(0.0, 1.0),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_seen_before_changes_the_calls_alone(parts, signals, groups, max_rounds, judged, share) -> None:
    """Any pattern of signal, and any guess of it: the step's groups and counts are those of rounds one by one."""
    drawer = Answering(parts, signals, groups, max_rounds)
    found = drawer.collect(start=3, version=0, seen=SignalShare(judged, judged * share))
    kept, drawn, rounds = [], 0, 0
    while len(kept) < groups and rounds < max_rounds:
        wave = range(3 + drawn, 3 + drawn + groups - len(kept))
        kept += [draw for draw in wave if signals[draw]]
        drawn, rounds = drawn + len(wave), rounds + 1
    assert [trajectory.response[0] for trajectory in found.trajectories[::2]] == kept
    assert (found.counts.drawn, found.counts.judged, found.rounds) == (drawn, drawn, rounds)
    assert found.counts.kept == len(kept)
    assert found.calls == len(drawer.asked) <= rounds and sum(drawer.asked) == drawn + found.surplus


def test_what_was_seen_saves_calls(parts) -> None:
    """One group of eight has signal: a step that knows it needs at least 30 % fewer calls than one that does not."""
    generator = random.Random(1)
    signals = [generator.random() < 1 / 8 for _ in range(4000)]
    calls = {}
    for knows in (True, False):
        seen, start, calls[knows] = SignalShare(), 0, 0
        for step in range(20):
            drawer = Answering(parts, signals, 10, 10)
            found = drawer.collect(start=start, version=0, seen=seen if knows else SignalShare())
            start += found.prompts_drawn
            seen = seen.after_step(found.counts.judged, found.counts.kept)
            calls[knows] += found.calls if step > 1 else 0
    assert calls[True] < 0.7 * calls[False]


def test_a_step_ends_after_its_rounds(parts) -> None:
    rollouts = collector(parts, 40, max_rounds=1).collect(start=0, version=0)
    assert rollouts.rounds == 1 and rollouts.groups_sampled == 40 and rollouts.groups_kept < 40


def test_without_replacement_all_groups_stay(parts) -> None:
    rollouts = collector(parts, 40, dynamic_sampling=False).collect(start=0, version=0)
    assert rollouts.groups_kept == rollouts.groups_sampled == 40


def test_the_same_draw_gives_the_same_responses(parts) -> None:
    first = collector(parts, 5, dynamic_sampling=False).collect(start=0, version=0).trajectories
    again = collector(parts, 3, dynamic_sampling=False).collect(start=2, version=0).trajectories
    assert [each.response for each in first[6:]] == [each.response for each in again]


@pytest.mark.parametrize("stale", [0, 1])
def test_a_step_without_signal_hands_out_responses_that_show_why(parts, stale: int) -> None:
    """One of each group, of new prompts each; what has signal is not among them."""
    source, engine = parts
    settings = {"max_staleness": 1, "tail": "stop"} if stale else {}
    config = rollout.RolloutConfig(samples=3, max_response_tokens=8, max_rounds=4, **settings)
    pool = rewards.RewardPool(rewards.RewardsConfig(kind=f"{__name__}:never", workers=0))
    rollouts = Collector(config, engine, source, pool, groups=6, world=None, seed=4).collect(start=0, version=0)
    assert rollouts.trajectories == [] and rollouts.groups_kept == 0
    assert len(rollouts.dropped) == min(rollouts.groups_sampled, 32) >= 24
    assert {(each.reward, each.reason) for each in rollouts.dropped} == {(0.0, "never")}
    assert len({each.prompt.index for each in rollouts.dropped}) > 12


def never(response: str, answer: str) -> tuple[bool, str]:
    return False, "never"


def test_how_many_are_kept_is_bounded(parts) -> None:
    source, engine = parts
    config = rollout.RolloutConfig(samples=2, max_response_tokens=2, max_rounds=20)
    pool = rewards.RewardPool(rewards.RewardsConfig(kind=f"{__name__}:never", workers=0))
    rollouts = Collector(config, engine, source, pool, groups=4, world=None, seed=4).collect(start=0, version=0)
    assert rollouts.groups_sampled == 80 and len(rollouts.dropped) == 32


def test_an_evaluation_ends_with_the_response_that_it_is_stopped_at(parts) -> None:
    """And says so, where it cannot judge; asked for again it is the whole one."""
    drawer = collector(parts, 4)
    prompts = drawer.source.held_out[:40]
    settings = evaluation.EvaluationConfig(samples=2)
    whole = evaluation.evaluate(drawer, prompts, settings)
    asked = iter([False] * 5)
    with pytest.raises(StopRequested, match="after 6 of 80 responses"):
        evaluation.evaluate(drawer, prompts, settings, stop_point=stops_where(lambda: next(asked, True)))
    asked = iter([False] * 90)
    with pytest.raises(StopRequested, match="of 40 responses"):
        evaluation.evaluate(drawer, prompts, settings, stop_point=stops_where(lambda: next(asked, True)))
    again = evaluation.evaluate(drawer, prompts, settings)
    assert [each.text for each in again.trajectories] == [each.text for each in whole.trajectories]
