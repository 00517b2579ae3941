"""Every step gets its groups: those without signal are replaced, draws go on where they stopped, nothing counts twice."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_fork import data, rewards, rollout
from megatron_fork.checkpoint import resolve_config
from megatron_fork.config import load_config
from megatron_fork.rollout import Collector, EmbeddedEngine


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
    config = rollout.Config(samples=3, max_response_tokens=8, **settings)
    return Collector(config, engine, source, parity_pool(), groups=groups, world=None, seed=4)


def parity(response: str, answer: str) -> bool:
    """A verifier that an untrained model passes now and then: an even number of words is right."""
    return len(response.split()) % 2 == 0


def parity_pool() -> rewards.RewardPool:
    return rewards.RewardPool(rewards.Config(kind=f"{__name__}:parity", workers=0))


def test_groups_without_signal_are_replaced(parts) -> None:
    rollouts = collector(parts, 6, max_rounds=50).collect(start=0, version=0)
    assert rollouts.groups_kept == 6 and rollouts.groups_sampled >= 6 and rollouts.rounds >= 1
    assert rollouts.prompts_drawn == rollouts.groups_sampled
    assert [trajectory.number for trajectory in rollouts.trajectories] == list(range(18))
    for first in range(0, 18, 3):
        group = rollouts.trajectories[first : first + 3]
        assert len({trajectory.prompt.index for trajectory in group}) == 1
        assert len({trajectory.reward for trajectory in group}) == 2


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
