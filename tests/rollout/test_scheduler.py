"""A stream gives a step the groups that rounds would; with staleness nothing is lost between steps, and tails go on."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import asdict, replace
from itertools import pairwise

import pytest
import torch
from support.parity import parity_pool
from support.stop_points import stops_where

from megatron_fork import rewards, rollout
from megatron_fork.errors import ConfigError, RolloutError, StopRequested
from megatron_fork.rollout import Collector, RolloutCounts
from megatron_fork.rollout.scheduler import RolloutScheduler
from megatron_fork.run import step_files


def config(**settings) -> rollout.RolloutConfig:
    return rollout.RolloutConfig(**{"samples": 3, "max_response_tokens": 8, "max_rounds": 50, **settings})


def collector(parts, groups: int, **settings) -> Collector:
    source, engine = parts
    return Collector(config(**settings), engine, source, parity_pool(), groups=groups, world=None, seed=4)


def steps_of(made: Collector, steps: int, start: int = 0, first: int = 0):
    drawn = start
    for version in range(first, first + steps):
        made.engine.version = version
        rollouts = made.collect(start=drawn, version=version)
        drawn += rollouts.prompts_drawn
        yield rollouts


@pytest.mark.parametrize("batch_size", [5, 64])
@pytest.mark.parametrize("dynamic_sampling", [True, False])
def test_without_staleness_the_stream_gives_what_rounds_give(parts, batch_size, dynamic_sampling) -> None:
    source, engine = parts
    settings = config(dynamic_sampling=dynamic_sampling)
    expected = collector(parts, 6, dynamic_sampling=dynamic_sampling).collect(start=0, version=0)
    engine.batch_size, before = batch_size, engine.batch_size
    try:
        step = RolloutScheduler(settings, engine, source, parity_pool(), groups=6, seed=4).take(start=0, version=0)
    finally:
        engine.batch_size = before
    drawn = [trajectory for group in step.groups for _, trajectory in sorted(group.answers.items())]
    assert [each.response for each in drawn] == [each.response for each in expected.trajectories]
    assert (step.counts.drawn, step.counts.judged) == (expected.prompts_drawn, expected.groups_sampled)
    assert step.counts.reward / (3 * step.counts.judged) == pytest.approx(expected.mean_reward)


def fails_on_some(response: str, answer: str) -> bool:
    if len(response) % 3 == 0:
        raise LookupError("on this response")
    return len(response.split()) % 2 == 0


def test_failures_of_a_verifier_are_counted_as_in_rounds(parts) -> None:
    source, engine = parts
    pool = rewards.RewardPool(rewards.RewardsConfig(kind=f"{__name__}:fails_on_some", workers=0))
    expected = Collector(config(), engine, source, pool, groups=6, world=None, seed=4).collect(start=0, version=0)
    counts = RolloutScheduler(config(), engine, source, pool, groups=6, seed=4).take(start=0, version=0).counts
    failures = asdict(counts.failures)
    assert {**failures, "example": ""} == {**asdict(expected.failures), "example": ""}
    assert failures["responses"] == 3 * counts.judged > failures["error"] > 0
    assert failures["example"].startswith("verifier raised LookupError: on this response (")
    kept = [trajectory for trajectory in expected.trajectories if trajectory.failure == "error"]
    assert all(trajectory.reward == 0.0 and "LookupError" in trajectory.reason for trajectory in kept)


def test_tails_are_kept_and_go_on_under_newer_weights(parts) -> None:
    """Every prompt that was drawn is trained on once, left out for want of signal, or still under way."""
    settings = {"max_staleness": 2, "tail": "stop", "batch_size": 7, "max_response_tokens": 30}
    made = collector(parts, 4, **settings)
    made.engine.batch_size, before = 7, made.engine.batch_size
    seen, judged, drawn, mixed, kept = [], 0, 0, 0, 0
    try:
        for version, rollouts in enumerate(steps_of(made, 6)):
            drawn += rollouts.prompts_drawn
            judged += rollouts.groups_sampled
            kept += sum(len(begun.tokens) for group in made.in_flight() for begun in group.begun.values())
            assert len(rollouts.trajectories) == 12 and rollouts.groups_in_flight == len(made.in_flight())
            for first in range(0, 12, 3):
                group = rollouts.trajectories[first : first + 3]
                assert len({each.prompt.index for each in group}) == 1 and len({each.reward for each in group}) == 2
                seen.append(tuple(each.response for each in group))
            for each in rollouts.trajectories:
                assert each.versions[0].start == 0 and each.versions[-1].end == len(each.response)
                assert all(one.end == two.start and one.version < two.version for one, two in pairwise(each.versions))
                assert version - 2 <= each.weight_version <= each.versions[-1].version <= version
                mixed += len(each.versions) > 1
    finally:
        made.engine.batch_size = before
    assert mixed > 0 and len(seen) == 24
    waiting = made.in_flight()
    assert all(len(group.answers) < 3 or group.has_signal for group in waiting)
    assert kept > 0
    finished = sum(len(group.answers) == 3 for group in waiting)
    without_signal = judged - finished - len(seen)
    assert without_signal > 0 and drawn == len(seen) + len(waiting) + without_signal


def test_what_is_under_way_is_kept_with_a_checkpoint(parts, tmp_path) -> None:
    """A run that is resumed draws what the uninterrupted one does, from the middle of responses on."""
    settings = {"max_staleness": 1, "tail": "stop", "max_response_tokens": 30}
    made = collector(parts, 4, **settings)
    made.engine.batch_size, before = 7, made.engine.batch_size
    try:
        first = list(steps_of(made, 3))
        step_files.write_groups(tmp_path, made.in_flight())
        drawn = sum(rollouts.prompts_drawn for rollouts in first)
        expected = list(steps_of(made, 3, drawn, first=3))
        again = collector(parts, 4, **settings)
        again.restore(step_files.read_groups(tmp_path))
        assert list(steps_of(again, 3, drawn, first=3)) == expected
    finally:
        made.engine.batch_size = before


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_a_draw_that_is_stopped_again_and_again_goes_on(parts, tmp_path, max_staleness) -> None:
    """With a new scheduler each time, from what the last one left: the prompts and responses of one that is not stopped."""
    source, engine = parts
    settings = config(max_response_tokens=30, max_staleness=max_staleness, tail="stop" if max_staleness else "generate")
    expected = collector(parts, 6, max_response_tokens=30).collect(start=0, version=0)
    left, counts, stops, begun = [], RolloutCounts(), 0, 0
    while True:
        scheduler = RolloutScheduler(settings, engine, source, parity_pool(), groups=6, seed=4)
        scheduler.restore(left, counts)
        polls = itertools.count(1)
        step = None
        with contextlib.suppress(StopRequested):
            stop_point = stops_where(lambda polls=polls: next(polls) > 12)
            step = scheduler.take(start=0, version=0, stop_point=stop_point)
        left, counts = scheduler.groups(), scheduler.counts
        step_files.write_groups(tmp_path, left)
        left = step_files.read_groups(tmp_path)
        if step is not None:
            break
        stops += 1
        begun += sum(len(each.tokens) > 0 for group in left for each in group.begun.values())
        assert len(left) >= 6 and counts.drawn >= 6
    assert stops > 1 and begun > 0 and counts == RolloutCounts()
    if max_staleness == 0:
        drawn = [trajectory for group in step.groups for _, trajectory in sorted(group.answers.items())]
        assert [each.response for each in drawn] == [each.response for each in expected.trajectories]
        assert (step.counts.drawn, step.counts.judged) == (expected.prompts_drawn, expected.groups_sampled)
        assert step.counts.reward / (3 * step.counts.judged) == pytest.approx(expected.mean_reward)
    else:
        assert len(step.groups) == 6 and all(group.has_signal for group in step.groups)


def test_what_was_drawn_before_a_failure_is_kept(parts) -> None:
    """The engine fails in the middle: all that was answered and judged is not drawn again."""
    source, engine = parts
    expected = collector(parts, 6, max_response_tokens=30).collect(start=0, version=0)

    class Failing:
        is_coordinated = False
        asked = 0

        def __getattr__(self, name):
            return getattr(engine, name)

        def submit(self, requests) -> None:
            self.asked += len(requests)
            engine.submit(requests)

        def completions(self):
            for count, completion in enumerate(engine.completions()):
                yield completion
                if count == 20:
                    raise RolloutError("it is gone", hint="start another")

    failing = Failing()
    scheduler = RolloutScheduler(config(max_response_tokens=30), failing, source, parity_pool(), groups=6, seed=4)
    with pytest.raises(RolloutError, match="it is gone"):
        scheduler.take(start=0, version=0)
    answered = sum(len(group.answers) for group in scheduler.groups())
    assert answered > 0 and failing.asked >= 18
    again = RolloutScheduler(config(max_response_tokens=30), engine, source, parity_pool(), groups=6, seed=4)
    again.restore(scheduler.groups(), scheduler.counts)
    step = again.take(start=0, version=0)
    drawn = [trajectory for group in step.groups for _, trajectory in sorted(group.answers.items())]
    assert [each.response for each in drawn] == [each.response for each in expected.trajectories]
    assert (step.counts.drawn, step.counts.judged) == (expected.prompts_drawn, expected.groups_sampled)


def test_what_was_restored_stays_as_the_checkpoint_has_it(parts) -> None:
    """A wait for servers may save it again, in the middle of a step that has gone on from there."""
    source, engine = parts
    settings = config(max_response_tokens=30)
    stopped = RolloutScheduler(settings, engine, source, parity_pool(), groups=6, seed=4)
    polls = itertools.count(1)
    with pytest.raises(StopRequested):
        stopped.take(start=0, version=0, stop_point=stops_where(lambda: next(polls) > 12))
    left, counts = stopped.groups(), stopped.counts

    def state() -> str:
        return repr([(sorted(group.answers), sorted(group.begun)) for group in left]) + repr(counts)

    before = state()
    again = RolloutScheduler(settings, engine, source, parity_pool(), groups=6, seed=4)
    again.restore(left, counts)
    again.take(start=0, version=0)
    assert state() == before


def test_nothing_under_way_is_no_file(tmp_path) -> None:
    step_files.write_groups(tmp_path, [])
    assert list(tmp_path.iterdir()) == [] and step_files.read_groups(tmp_path) == []


def test_an_engine_that_shares_the_processors_must_stop() -> None:
    with pytest.raises(ConfigError, match=r"rollout\.max_staleness=1 with rollout\.engine=embedded"):
        rollout.RolloutConfig(max_staleness=1)
    with pytest.raises(ConfigError, match=r"rollout\.max_staleness=-1 is negative"):
        rollout.RolloutConfig(max_staleness=-1)


def test_fresh_tokens_are_told_from_older_ones(parts) -> None:
    from megatron_fork.experience import Batch, VersionSpan

    trajectories = collector(parts, 2).collect(start=0, version=0).trajectories[:2]
    spans = [(VersionSpan(3, 0, 2), VersionSpan(4, 2, len(trajectories[0].response))), ()]
    batch = Batch.of_trajectories(
        [replace(trajectory, versions=span) for trajectory, span in zip(trajectories, spans, strict=True)]
    )
    expected = torch.ones(batch.response_tokens, dtype=torch.bool)
    expected[:2] = False
    assert batch.drawn_by(4).equal(expected)
