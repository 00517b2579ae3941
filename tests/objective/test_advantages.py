"""Group advantages equal the plain formulas of their estimators, and a group without spread has none at all."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_fork.errors import ConfigError, ObjectiveError
from megatron_fork.objective import ObjectiveConfig, Overlong, group_advantages, overlong_penalty, whiten


def expected(rewards: list[float], group_ids: list[int], estimator: str) -> list[float]:
    advantages = []
    for reward, group_id in zip(rewards, group_ids, strict=True):
        group = [other for other, identity in zip(rewards, group_ids, strict=True) if identity == group_id]
        mean = math.fsum(group) / len(group)
        if len(group) == 1:
            advantages.append(0.0)
        elif estimator == "dr_grpo":
            advantages.append(reward - mean)
        elif estimator == "rloo":
            advantages.append(reward - (math.fsum(group) - reward) / (len(group) - 1))
        else:
            deviation = math.sqrt(math.fsum((other - mean) ** 2 for other in group) / (len(group) - 1))
            advantages.append((reward - mean) / (deviation + 1e-6))
    return advantages


def whitened(values: list[float]) -> list[float]:
    mean = math.fsum(values) / max(1, len(values))
    squares = math.fsum((value - mean) ** 2 for value in values)
    return [(value - mean) / (math.sqrt(squares / max(1, len(values) - 1)) + 1e-6) for value in values]


@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo", "rloo", "reinforce_pp"])
@given(
    pairs=st.lists(
        st.tuples(st.integers(-16, 16).map(lambda eighths: eighths / 8), st.sampled_from([-5, 0, 3, 2**40])),
        max_size=24,
    )
)
@settings(max_examples=60, deadline=None)
def test_equals_the_formula(estimator: str, pairs: list[tuple[float, int]]) -> None:
    rewards, group_ids = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    found = group_advantages(
        torch.tensor(rewards, dtype=torch.float32),
        torch.tensor(group_ids, dtype=torch.long),
        ObjectiveConfig(advantage=estimator),
    )
    assert found.dtype == torch.float32
    plain = expected(rewards, group_ids, "dr_grpo" if estimator == "reinforce_pp" else estimator)
    plain = whitened(plain) if estimator == "reinforce_pp" else plain
    assert found.tolist() == pytest.approx(plain, rel=1e-6, abs=1e-7)


def test_examples() -> None:
    rewards, ids = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0]), torch.tensor([4, 4, 4, 4, 9])
    assert group_advantages(rewards, ids, ObjectiveConfig(advantage="dr_grpo")).tolist() == [
        0.75,
        -0.25,
        -0.25,
        -0.25,
        0.0,
    ]
    assert group_advantages(rewards, ids, ObjectiveConfig(advantage="rloo")).tolist() == pytest.approx(
        [1, -1 / 3, -1 / 3, -1 / 3, 0]
    )
    assert group_advantages(rewards, ids, ObjectiveConfig()).tolist() == pytest.approx(
        [1.5, -0.5, -0.5, -0.5, 0], rel=1e-5
    )
    # The deviation of (0.75, -0.25, -0.25, -0.25, 0) is sqrt(0.75 / 4).
    spread = math.sqrt(0.1875)
    assert group_advantages(rewards, ids, ObjectiveConfig(advantage="reinforce_pp")).tolist() == pytest.approx(
        [0.75 / spread, -0.25 / spread, -0.25 / spread, -0.25 / spread, 0], rel=1e-5
    )


@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo", "rloo", "reinforce_pp"])
@given(reward=st.floats(-2, 2, width=32), size=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_equal_rewards_have_exactly_no_advantage(estimator: str, reward: float, size: int) -> None:
    rewards, ids = torch.full((size,), reward), torch.zeros(size, dtype=torch.long)
    assert group_advantages(rewards, ids, ObjectiveConfig(advantage=estimator)).tolist() == [0.0] * size


def test_bad_rewards_are_named() -> None:
    with pytest.raises(ObjectiveError, match=r"rewards has shape \[2\], group_ids \[3\]"):
        group_advantages(torch.zeros(2), torch.zeros(3, dtype=torch.long), ObjectiveConfig())
    for value in (math.nan, math.inf):
        with pytest.raises(ObjectiveError, match=f"reward 1 is {value}"):
            group_advantages(torch.tensor([0.0, value]), torch.zeros(2, dtype=torch.long), ObjectiveConfig())


@given(values=st.lists(st.floats(-4, 4, width=32), max_size=30), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_whitening_is_over_the_marked_values_alone(values: list[float], seed: int) -> None:
    mask = torch.rand(len(values), generator=torch.Generator().manual_seed(seed)) < 0.7
    column = torch.where(mask, torch.tensor(values), math.nan)
    found = whiten(column, mask)
    marked = [value for value, flag in zip(values, mask.tolist(), strict=True) if flag]
    assert found.dtype == torch.float32
    assert found[mask].tolist() == pytest.approx(whitened(marked), rel=1e-5, abs=1e-6)
    assert found[~mask].tolist() == [0.0] * (len(values) - len(marked))


def test_whitening_names_bad_columns() -> None:
    flags = torch.ones(2, dtype=torch.bool)
    with pytest.raises(ObjectiveError, match=r"mask has shape \[2\], advantage \[3\]"):
        whiten(torch.zeros(3), flags)
    with pytest.raises(ObjectiveError, match="not finite"):
        whiten(torch.tensor([0.0, math.nan]), flags)


def test_overlong_penalty_at_the_papers_points() -> None:
    lengths = torch.tensor([0, 1, 16384, 17408, 18432, 20480, 29696])
    assert overlong_penalty(lengths, ObjectiveConfig()).tolist() == [0.0, 0.0, 0.0, -0.25, -0.5, -1.0, -1.0]
    halved = ObjectiveConfig(overlong=Overlong(factor=0.5))
    assert overlong_penalty(lengths, halved).tolist() == [0.0, 0.0, 0.0, -0.125, -0.25, -0.5, -0.5]
    small = ObjectiveConfig(overlong=Overlong(max_response=10, cache=4))
    assert overlong_penalty(torch.arange(5, 12), small).tolist() == [0.0, 0.0, -0.25, -0.5, -0.75, -1.0, -1.0]
    off = ObjectiveConfig(overlong=Overlong(factor=0.0))
    assert overlong_penalty(lengths, off).abs().tolist() == [0.0] * 7


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"clip_low": -0.1}, "objective.clip_low=-0.1"),
        ({"clip_low": 1.0}, "objective.clip_low=1.0"),
        ({"clip_high": -1.0}, "objective.clip_high=-1.0"),
        ({"dual_clip": 1.0}, "objective.dual_clip=1.0"),
        ({"tis_cap": 0.0}, "objective.tis_cap=0.0"),
        ({"entropy_coef": -1e-3}, "objective.entropy_coef=-0.001"),
        ({"icepop_low": 2.0}, "objective.icepop_low=2.0"),
    ],
)
def test_bad_settings_are_named(fields: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        ObjectiveConfig(**fields)
    assert caught.value.hint


@pytest.mark.parametrize("cache", [0, 20481])
def test_bad_overlong_cache_is_named(cache: int) -> None:
    with pytest.raises(ConfigError, match=f"objective.overlong.cache={cache}"):
        Overlong(cache=cache)
