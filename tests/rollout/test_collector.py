"""Every step gets its groups: those without signal are replaced, draws go on where they stopped, nothing counts twice."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from megatron_fork import data, evaluation, rewards, rollout
from megatron_fork.config import load_config
from megatron_fork.conversion import resolve_config
from megatron_fork.errors import StopRequested
from megatron_fork.rollout import Collector, EmbeddedEngine
from megatron_fork.rollout.collector import draws_to_come


@pytest.fixture(scope="module")
def parts():
    from commands import QUICKSTART

    config = load_config(QUICKSTART)
    hf_config = resolve_config(config.model)
    source = data.load_prompts(config.data, None)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(hf_config)
    engine = EmbeddedEngine(
        hf_config, stop_tokens=(1,), pad_token=0, batch_size=64, device=torch.device("cpu"), dtype=torch.float32
    )
    engine.update_weights(model.named_parameters(), 0)
    return source, engine


def collector(parts, groups: int, **settings) -> Collector:
    source, engine = parts
    config = rollout.RolloutConfig(samples=3, max_response_tokens=8, **settings)
    return Collector(config, engine, source, parity_pool(), groups=groups, world=None, seed=4)


def parity(response: str, answer: str) -> bool:
    """A verifier that an untrained model passes now and then: an even number of words is right."""
    return len(response.split()) % 2 == 0


def parity_pool() -> rewards.RewardPool:
    return rewards.RewardPool(rewards.RewardsConfig(kind=f"{__name__}:parity", workers=0))


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
def test_drawing_ahead_gives_what_rounds_one_by_one_give(parts, start: int, max_rounds: int) -> None:
    drawer = collector(parts, 6, max_rounds=max_rounds)
    asked: list[int] = []
    sample = drawer.sample
    drawer.sample = lambda prompts, *rest, **options: asked.append(len(prompts)) or sample(prompts, *rest, **options)
    found = drawer.collect(start=start, version=0)
    batches = len(asked)
    responses, drawn, rounds, mean = round_by_round(drawer, start)
    assert [list(trajectory.response) for trajectory in found.trajectories] == responses
    assert (found.prompts_drawn, found.groups_sampled, found.rounds) == (drawn, drawn, rounds)
    assert found.mean_reward == pytest.approx(mean)
    assert batches <= rounds


@given(missing=st.integers(1, 64), kept=st.integers(0, 64), more=st.integers(0, 200), rounds=st.integers(1, 20))
def test_at_least_the_next_round_and_never_more_than_all_rounds(
    missing: int, kept: int, more: int, rounds: int
) -> None:
    assert missing <= draws_to_come(missing, kept, kept + more, rounds) <= missing * rounds
    assert draws_to_come(missing, 0, 0, rounds) == missing


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


def stops_where(asked):
    def stop_point() -> None:
        if asked():
            raise StopRequested

    return stop_point


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
