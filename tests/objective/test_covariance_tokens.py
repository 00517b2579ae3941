"""Covered tokens are those that the definition names: the largest covariances, or a draw among the large ones."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_fork.errors import ObjectiveError
from megatron_fork.objective import ObjectiveConfig, covariance_tokens


def tokens_of(seed: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logprob = -3.0 * torch.randn(tokens, generator=generator).abs()
    return logprob, torch.randn(tokens, generator=generator), torch.rand(tokens, generator=generator) < 0.8


def covariances(logprob: torch.Tensor, advantage: torch.Tensor, mask: torch.Tensor) -> dict[int, float]:
    places = mask.nonzero()[:, 0].tolist()
    means = [math.fsum(column[place].item() for place in places) / len(places) for column in (advantage, logprob)]
    return {place: (advantage[place].item() - means[0]) * (logprob[place].item() - means[1]) for place in places}


@given(seed=st.integers(0, 10_000), tokens=st.integers(1, 80), share=st.sampled_from([0.001, 0.1, 0.37, 1.0]))
@settings(max_examples=60, deadline=None)
def test_kl_cov_takes_the_largest(seed: int, tokens: int, share: float) -> None:
    logprob, advantage, mask = tokens_of(seed, tokens)
    mask[0] = True
    found = covariance_tokens(logprob, advantage, mask, ObjectiveConfig(loss="kl_cov", cov_share=share))
    values = covariances(logprob, advantage, mask)
    count = max(1, math.ceil(round(share * len(values), 9)))
    largest = sorted(values, key=lambda place: -values[place])[:count]
    assert found.nonzero()[:, 0].tolist() == sorted(largest)


@given(seed=st.integers(0, 10_000), tokens=st.integers(1, 80), share=st.sampled_from([0.001, 0.05, 0.2, 1.0]))
@settings(max_examples=60, deadline=None)
def test_clip_cov_draws_between_its_bounds(seed: int, tokens: int, share: float) -> None:
    logprob, advantage, mask = tokens_of(seed, tokens)
    mask[0] = True
    config = ObjectiveConfig(loss="clip_cov", cov_share=share, cov_low=0.4, cov_high=2.5)
    found = covariance_tokens(logprob, advantage, mask, config, step=3)
    values = covariances(logprob, advantage, mask)
    eligible = {place for place, value in values.items() if 0.4 <= value <= 2.5}
    drawn = set(found.nonzero()[:, 0].tolist())
    assert drawn <= eligible
    assert len(drawn) == min(len(eligible), max(1, math.ceil(round(share * len(values), 9))))


def test_the_draw_is_even_and_follows_ids_and_step() -> None:
    generator = torch.Generator().manual_seed(1)
    logprob, advantage = torch.tensor([-1.0, -3.0]).repeat(300), torch.tensor([1.5, -1.5]).repeat(300)
    everything, ids = torch.ones(600, dtype=torch.bool), torch.randperm(600, generator=generator) * 2**24
    config = ObjectiveConfig(loss="clip_cov", cov_share=0.1)
    draws = [covariance_tokens(logprob, advantage, everything, config, token_ids=ids, step=step) for step in range(200)]
    assert {int(draw.sum()) for draw in draws} == {60}
    often = torch.stack(draws).double().mean(dim=0)
    assert (often - 0.1).abs().max().item() < 0.1  # five standard deviations of a share of 200
    assert abs((often[::2] - often[1::2]).mean().item()) < 0.02
    order = torch.randperm(600, generator=generator)
    again = covariance_tokens(logprob[order], advantage[order], everything, config, token_ids=ids[order], step=0)
    assert again.tolist() == draws[0][order].tolist()


def test_ties_go_to_the_lowest_ids() -> None:
    everything = torch.ones(4, dtype=torch.bool)
    logprob, advantage = torch.tensor([-1.0, -3.0, -1.0, -3.0 + 1e-6]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    config = ObjectiveConfig(loss="kl_cov", cov_share=0.5)
    ids = torch.tensor([9, 4, 7, 5])
    found = covariance_tokens(logprob, advantage, everything, config, token_ids=ids, tie_tolerance=1e-4)
    assert found.tolist() == [False, True, False, True]


@pytest.mark.parametrize("loss", ["clip_cov", "kl_cov"])
def test_no_token_is_legal(loss: str) -> None:
    none = torch.zeros(3, dtype=torch.bool)
    column = torch.full((3,), math.nan)
    assert covariance_tokens(column, column, none, ObjectiveConfig(loss=loss)).tolist() == [False] * 3
    assert covariance_tokens(column[:0], column[:0], none[:0], ObjectiveConfig(loss=loss)).shape == (0,)


def test_bad_input_is_named() -> None:
    column, flags = torch.zeros(3), torch.ones(3, dtype=torch.bool)
    with pytest.raises(ObjectiveError, match=r"advantage has shape \[2\], logprob \[3\]"):
        covariance_tokens(column, column[:2], flags, ObjectiveConfig(loss="kl_cov"))
    with pytest.raises(ObjectiveError, match=r"objective.loss=ppo has no covariance tokens"):
        covariance_tokens(column, column, flags, ObjectiveConfig())
    with pytest.raises(ObjectiveError, match="not finite"):
        covariance_tokens(column, torch.tensor([0.0, math.nan, 0.0]), flags, ObjectiveConfig(loss="kl_cov"))
